"""Provider `gateway` against a real MLflow server, whose AI Gateway asks a loopback server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from chat_requests import TOOLS, asked, calls_of, told
from model_servers import Call, Failure, OpenAIServer, Reply, Tokens

from ftlab_mlflow.chat.catalog import catalog
from ftlab_mlflow.chat.model import Usage
from ftlab_mlflow.chat.provider import Surroundings, ToolMessage, ToolResult, UserMessage
from ftlab_mlflow.chat.providers.gateway import Gateway
from ftlab_mlflow.errors import BadKey, ContextOverflow, ProviderError, RateLimited

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tracking_server(new_mlflow_server: Callable[..., Any]) -> str:
    uri: str = new_mlflow_server(
        MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES="http",
        MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS="true",
        MLFLOW_CRYPTO_KEK_PASSPHRASE="of this test only",
    ).uri
    return uri


@pytest.fixture
def endpoint(tracking_server: str) -> Iterator[Callable[[OpenAIServer], str]]:
    """``endpoint(server)`` makes an endpoint of the gateway that asks it, and returns its name."""
    made: list[str] = []

    def post(path: str, **body: Any) -> Any:
        url = f"{tracking_server}/api/3.0/mlflow/gateway/{path}"
        response = requests.post(url, json=body, timeout=30)
        assert response.ok, response.text
        return response.json()

    def make(server: OpenAIServer) -> str:
        name = f"endpoint-{server.address.rpartition(':')[2]}"
        secret = post(
            "secrets/create",
            secret_name=name,
            secret_value={"api_key": "of the gateway"},
            provider="openai",
            auth_config={"api_base": server.base_url},
        )["secret"]["secret_id"]
        model = post(
            "model-definitions/create",
            name=name,
            secret_id=secret,
            provider="openai",
            model_name="gpt-4o-mini",
        )["model_definition"]["model_definition_id"]
        configs = [{"model_definition_id": model, "linkage_type": "PRIMARY"}]
        found = post("endpoints/create", name=name, model_configs=configs)["endpoint"]
        made.append(found["endpoint_id"])
        return name

    yield make
    for each in made:
        url = f"{tracking_server}/api/3.0/mlflow/gateway/endpoints/delete"
        requests.delete(url, json={"endpoint_id": each}, timeout=30)


def test_a_conversation(tracking_server: str, endpoint: Callable[[OpenAIServer], str]) -> None:
    calls = [Call("get_run", {"run": "äö"}), Call("rank_runs", "{broken")]
    script = [Reply("I look.", calls, usage=Tokens(100, 20, cached=60)), Reply("0.5 🎉")]
    with OpenAIServer(script) as server:
        name = endpoint(server)
        gateway = Gateway(Surroundings(tracking_server))
        (model,) = gateway.models()
        assert (model.id, model.price) == (f"gateway/{name}", catalog("openai")["gpt-4o-mini"].price)
        _, done = told(gateway, asked("Hello?", model=name, temperature=0.3))
        assert calls_of(done) == [("get_run", calls[0].text), ("rank_runs", "{broken")]
        assert done.usage == Usage(100, 20, cached_tokens=60)
        results = ToolMessage(tuple(ToolResult(call.id, "0.5") for call in done.message.calls))
        history = asked("Hello?", done.message, results, UserMessage("Now."), model=name, may_call=False)
        assert told(gateway, history)[1].message.text == "0.5 🎉"
    first, second = (each.json for each in server.requests)
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("gpt-4o-mini", 0.3, 4096)
    assert first["tools"][0]["function"]["parameters"] == TOOLS[0].schema
    assert second["tool_choice"] == "none"


def test_errors(tracking_server: str, endpoint: Callable[[OpenAIServer], str]) -> None:
    gateway = Gateway(Surroundings(tracking_server))
    too_long = "This model's maximum context length is 4096 tokens."
    for failure, kind in (
        (Failure(429, "slow down"), RateLimited),
        (Failure(401, "Incorrect API key provided"), BadKey),
        (Failure(400, too_long, code="context_length_exceeded"), ContextOverflow),
    ):
        with OpenAIServer([failure]) as server, pytest.raises(kind, match=failure.message):
            told(gateway, asked("Hello?", model=endpoint(server)))
    with pytest.raises(ProviderError, match="not found"):
        told(gateway, asked("Hello?", model="no-such-endpoint"))


def test_a_temperature_that_the_model_behind_does_not_take(
    tracking_server: str, endpoint: Callable[[OpenAIServer], str]
) -> None:
    with OpenAIServer(lambda request: Reply("ok"), refuses=["temperature"]) as server:
        name = endpoint(server)
        _, done = told(Gateway(Surroundings(tracking_server)), asked("Hello?", model=name, temperature=0.3))
    assert (done.message.text, done.note is not None) == ("ok", True)
