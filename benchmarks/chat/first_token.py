"""What the chat adds to the time until the first text: beside the SDK's own stream, to the same server.

A question that needs no tool is asked in turn with the SDK alone, by the loop, and by the whole service with
its app database; all three send the same prompt, tools and model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from intervals import Estimate, median

from ftlab_mlflow.app_store import AppStore
from ftlab_mlflow.chat import choice, endpoints, prompt
from ftlab_mlflow.chat.asking import Asking
from ftlab_mlflow.chat.choice import Chosen
from ftlab_mlflow.chat.events import Text
from ftlab_mlflow.chat.loop import answer
from ftlab_mlflow.chat.plugins import load_providers
from ftlab_mlflow.chat.provider import Surroundings
from ftlab_mlflow.chat.service import ChatService

QUESTION = "Say good morning, nothing else."
_MAX_TOKENS = 64
_WARM_UP = 3


@contextmanager
def still_server() -> Iterator[str]:
    """The scripted model in a process of its own, which says the same at once whatever it is asked."""
    command = [sys.executable, str(Path(__file__).with_name("scripted.py")), "Good", "morning."]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def measure(model_id: str, tracking_uri: str, rounds: int, seed: int) -> dict[str, Estimate]:
    """Medians in seconds: `sdk`, and `loop` and `service` less the SDK's time in the same round.

    Raises:
        FTLabError: The model cannot be used, or gave no answer.
    """
    providers = load_providers(Surroundings(tracking_uri))
    chosen = choice.resolve(model_id, None, providers)
    service = ChatService("first token", tracking_uri, AppStore(), providers)
    ways: dict[str, Callable[[], float]] = {
        "sdk": raw(chosen),
        "loop": lambda: _until_text(answer(Asking(QUESTION, chosen, tracking_uri, max_tokens=_MAX_TOKENS))),
        "service": lambda: _until_text(
            service.ask(service.open().id, QUESTION, model_id=model_id, max_tokens=_MAX_TOKENS)
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(-_WARM_UP, rounds):
        for name in names[number % 3 :] + names[: number % 3]:
            seconds = ways[name]()
            if number >= 0:
                times[name].append(seconds)
    found = {"sdk": _median(times["sdk"], seed)}
    for name in ("loop", "service"):
        found[name] = _median([own - raw for own, raw in zip(times[name], times["sdk"], strict=True)], seed)
    return found


def _median(values: list[float], seed: int) -> Estimate:
    return median({str(number): [value] for number, value in enumerate(values)}, seed)


def _until_text(events: Iterator[Any]) -> float:
    """Seconds until the first text can be shown; the rest is read, too."""
    began = time.perf_counter()
    seconds = None
    for event in events:
        if seconds is None and isinstance(event, Text):
            seconds = time.perf_counter() - began
    assert seconds is not None, "there was no text"
    return seconds


def raw(chosen: Chosen) -> Callable[[], float]:
    """The same request by the SDK alone: gives the seconds until its first piece of text.

    Raises:
        ValueError: It is not known how to reach the model without the chat.
    """
    if chosen.model.provider == "anthropic":
        return _anthropic(chosen.model.name)
    if chosen.model.provider in ("openai", "xai", "local"):
        return _openai(chosen)
    raise ValueError(f"the time to the first token is not measured for {chosen.model.provider}")


def _openai(chosen: Chosen) -> Callable[[], float]:
    import openai

    client = openai.OpenAI(max_retries=0, **_address(chosen))
    tools: Any = [
        {
            "type": "function",
            "function": {"name": spec.name, "description": spec.description, "parameters": dict(spec.schema)},
        }
        for spec in prompt.tool_specs()
    ]

    def once() -> float:
        began = time.perf_counter()
        seconds = None
        with client.chat.completions.create(
            model=chosen.model.name,
            messages=[{"role": "system", "content": _system()}, {"role": "user", "content": QUESTION}],
            tools=tools,
            stream=True,
        ) as stream:
            for chunk in stream:
                if seconds is None and chunk.choices and chunk.choices[0].delta.content:
                    seconds = time.perf_counter() - began
        assert seconds is not None, "there was no text"
        return seconds

    weakref.finalize(once, client.close)
    return once


def _address(chosen: Chosen) -> dict[str, Any]:
    """Where the SDK finds the model, if not by its own environment."""
    if chosen.model.provider == "xai":
        url = os.environ.get("XAI_BASE_URL") or "https://api.x.ai/v1"
        return {"base_url": url, "api_key": os.environ["XAI_API_KEY"]}
    if chosen.model.provider == "local":
        endpoint = endpoints.endpoints()[chosen.model.endpoint]
        key = os.environ[endpoint.api_key_env] if endpoint.api_key_env else "none"
        return {"base_url": endpoint.base_url, "api_key": key}
    return {}


def _anthropic(model: str) -> Callable[[], float]:
    import anthropic

    client = anthropic.Anthropic(max_retries=0)
    tools: Any = [
        {"name": spec.name, "description": spec.description, "input_schema": dict(spec.schema)}
        for spec in prompt.tool_specs()
    ]

    def once() -> float:
        began = time.perf_counter()
        seconds = None
        with client.messages.stream(
            model=model,
            system=_system(),
            messages=[{"role": "user", "content": QUESTION}],
            tools=tools,
            max_tokens=_MAX_TOKENS,
        ) as stream:
            for text in stream.text_stream:
                if seconds is None and text:
                    seconds = time.perf_counter() - began
        assert seconds is not None, "there was no text"
        return seconds

    weakref.finalize(once, client.close)
    return once


def _system() -> str:
    return prompt.system(datetime.now(UTC).date())
