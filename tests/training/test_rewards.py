"""What rewards answers: the demo's checkable reward, functions by name, and every way to name one wrongly."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trl.rewards import think_format_reward

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.training import demo_sums
from ftlab_mlflow.training.config import DEMO_REWARD, TrainConfig, load_config
from ftlab_mlflow.training.demo_sums import sum_reward
from ftlab_mlflow.training.methods import METHODS
from ftlab_mlflow.training.rewards import load_rewards
from ftlab_mlflow.training.train import Training

# --- the demo's sums ---------------------------------------------------------------------------------


def reward(text: str, answer: int) -> float:
    """Of a conversational answer, which must be that of a plain one."""
    (conversational,) = sum_reward([[{"role": "assistant", "content": text}]], [answer], prompts=["?"])
    assert sum_reward([text], [answer]) == [conversational]
    return conversational


def test_the_right_sum_is_worth_one_and_a_better_answer_more() -> None:
    assert reward("7", 7) == reward(" 7\n", 7) == 1
    assert reward("8", 7) == reward("6", 7) == (1 + 1 / 2) / 2
    assert reward("17", 7) == pytest.approx((1 + 1 / 11) / 2)
    assert reward("7 or so", 7) == (1 / 7) / 2
    assert reward("many", 7) == reward("", 7) == reward("  ", 7) == 0
    assert reward("²", 4) == reward("٤", 4) == 0
    assert 0.5 < reward("9" * 10_000, 7) < 0.51
    ladder = ["def f", "def 4", "4 4", "40", "4", "6", "7"]
    worths = [reward(text, 7) for text in ladder]
    assert worths == sorted(set(worths))


def question(sample: dict[str, Any]) -> int:
    """The right answer, read from what the prompt asks."""
    (message,) = sample["prompt"]
    found = re.fullmatch(r"What is (\d+) \+ (\d+)\?", message["content"])
    assert found
    assert message["role"] == "user"
    return int(found[1]) + int(found[2])


def said(messages: list[dict[str, str]]) -> str:
    assert [message["role"] for message in messages] == ["assistant"]
    return messages[0]["content"]


@pytest.mark.parametrize("make", [demo_sums.prompts, demo_sums.preferences, demo_sums.verdicts])
def test_the_samples_of_the_demo_are_true_the_same_every_time_and_split(make: Any) -> None:
    random.seed(3)
    train, test = make()
    assert (train, test) == make()
    asked = [sample["prompt"][0]["content"] for sample in train + test]
    assert len(set(asked)) == len(asked) == 32 * 32
    assert len(test) == len(asked) // 20
    for sample in train + test:
        number = question(sample)
        if "answer" in sample:
            assert sample["answer"] == number
        elif "label" in sample:
            assert sample["label"] is (said(sample["completion"]) == str(number))
        else:
            assert reward(said(sample["chosen"]), number) > reward(said(sample["rejected"]), number)
    if make is demo_sums.verdicts:
        assert sum(sample["label"] for sample in train + test) == len(asked) // 2


# --- by name -----------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def config(*rewards: str, method: str = "grpo") -> TrainConfig:
    return load_config(METHODS[method], None, ("--model", "demo", "--data", "demo", *rewards))


def load(*names: str) -> list[Any]:
    return list(load_rewards(config("--reward_funcs", *names), ["prompt", "answer"]))


def test_functions_are_found_in_the_working_directory_by_either_name(here: Path) -> None:
    (here / "scores").mkdir()
    (here / "scores" / "short.py").write_text(
        "def length(completions, **_):\n    return [len(c) for c in completions]\n"
        "async def slow(prompts, completions, answer, **more):\n    return answer\n"
        "class Strict:\n    def __call__(self, *, completions, answer, **_):\n        return answer\n"
        "strict = Strict()\n"
    )
    first, same, slow, strict = load(
        "scores.short:length", "scores.short.length", "scores.short:slow", "scores.short:strict"
    )
    assert first is same
    assert first(completions=["ab", "c"]) == [2, 1]
    assert slow.__name__ == "slow"
    assert strict(completions=["a"], answer=[3]) == [3]
    assert load(DEMO_REWARD) == [sum_reward]


def test_the_names_of_trls_script_and_a_model_are_taken_in_its_order(here: Path) -> None:
    (here / "rm").mkdir()
    options = ("--reward_funcs", "think_format_reward", "get_soft_overlong_punishment")
    for method in ("grpo", "rloo"):
        chosen = config(*options, "--reward_model_name_or_path", "./rm", method=method)
        model, think, punishment = load_rewards(chosen, ["prompt"])
        assert (model, think) == ("./rm", think_format_reward)
        assert callable(punishment)
        # TRL's script: nothing is punished up to 1280 - 256 tokens, all of it beyond 1280.
        assert punishment(completion_ids=[[0] * 1024, [0] * 1281]) == [0.0, -1.0]
    with pytest.raises(ConfigError, match=r"^reward_model_name_or_path: there is no folder \./gone$"):
        load_rewards(config("--reward_model_name_or_path", "./gone"), ["prompt"])


WRONG = [
    ("nothing", "'nothing' is neither module:function nor one of accuracy_reward, "),
    (":f", "':f' is neither module:function nor one of "),
    ("no_such_module:f", "there is no module no_such_module, neither in {here} nor installed"),
    ("broken:f", "broken cannot be imported: ZeroDivisionError: division by zero"),
    ("needs:f", "needs cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
    ("rewards:missing", "rewards has no function missing"),
    ("rewards:number", "rewards:number is no function, but 3"),
    (
        "rewards:plain",
        "rewards:plain cannot be called: got an unexpected keyword argument 'prompts'; it is given the "
        "keywords prompts, completions, completion_ids, trainer_state, log_extra, log_metric, answer: take",
    ),
    ("rewards:solution", "rewards:solution cannot be called: missing a required argument: 'solution'; it is"),
]


@pytest.mark.parametrize(("name", "error"), WRONG)
def test_a_function_that_cannot_be_used_is_named(here: Path, name: str, error: str) -> None:
    (here / "broken.py").write_text("1 / 0\n")
    (here / "needs.py").write_text("import not_there\n")
    (here / "rewards.py").write_text(
        "number = 3\ndef plain(completions): ...\ndef solution(completions, solution, **_): ...\n"
    )
    with pytest.raises(ConfigError, match="^reward_funcs: " + re.escape(error.format(here=here))) as raised:
        load(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_function_rewards_a_training_and_gets_the_keywords_that_the_check_tells(
    here: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    (here / "rewards.py").write_text(
        "def plain(completions): ...\n"
        "calls = []\n"
        "def spy(**given):\n"
        "    calls.append(given)\n"
        "    return [float(len(text)) for text in given['completions']]\n"
    )
    rows = [{"prompt": f"Say {i}", "number": i} for i in range(4)]
    (here / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    words = f"--model demo --data prompts.jsonl --reward_funcs rewards:spy --tracking_uri {tracking_uri} "
    words += "--max_steps 1 --logging_steps 1 --eval_strategy no --save_strategy no --disable_tqdm "
    words += "--per_device_train_batch_size 4 --num_generations 2 --reward_weights 3"
    outcome = Training(load_config(METHODS[method], None, words.split())).run()
    (call,) = importlib.import_module("rewards").calls
    assert (call["number"], len(call["prompts"])) == ([int(text[4:]) for text in call["prompts"]], 4)
    lengths = [len(text) for text in call["completions"]]
    assert outcome.metrics["rewards/spy/mean"] == pytest.approx(sum(lengths) / 4)
    assert outcome.metrics["reward"] == pytest.approx(3 * sum(lengths) / 4)
    with pytest.raises(ConfigError) as raised:
        load_rewards(config("--reward_funcs", "rewards:plain", method=method), ["prompt", "number"])
    told = str(raised.value).partition("it is given the keywords ")[2].partition(":")[0]
    assert set(told.split(", ")) == set(call)
