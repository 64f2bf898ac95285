"""`ftlab train rlhf`: two stages as child runs of one parent, changed while they train; a truthful end."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from safetensors.torch import load_file

from ftlab_mlflow import LiveRun, NotLive, RunNotFound
from ftlab_mlflow.cli.train import train
from ftlab_mlflow.errors import ConfigError, FTLabError
from ftlab_mlflow.training.config import DEMO_REWARD
from ftlab_mlflow.training.rlhf import Pipeline, load_pipeline

LIMIT_S = 180
ASKED = 5e-4
QUICK = (
    "--logging_steps 1 --eval_strategy no --save_strategy no --lr_scheduler_type constant --warmup_steps 0 "
    "--poll_interval 0.05 --disable_tqdm --policy.num_generations 2 --per_device_train_batch_size 4"
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "rlhf.yaml"


@pytest.fixture(autouse=True)
def _folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = tmp_path_factory.getbasetemp() / "rlhf-cache"  # the demo model is built once
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def pipeline(uri: str, options: str, **own: str) -> Pipeline:
    return Pipeline(load_pipeline(None, f"{QUICK} --tracking_uri {uri} {options}".split(), **own))


def beside(uri: str, name: str, act: Callable[[LiveRun], None]) -> threading.Thread:
    """A thread that waits for the run of that name to train, and then does something with it."""

    def run() -> None:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            try:
                found = LiveRun(name, tracking_uri=uri)
                if found.status().state == "running":
                    act(found)
                    return
            except (RunNotFound, NotLive):
                pass
            time.sleep(0.1)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def runs(uri: str) -> dict[str, Run]:
    """All runs by name."""
    client = MlflowClient(uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.info.run_name: run for run in found}


def changed_once(steps: dict[str, int]) -> Callable[[LiveRun], None]:
    """Holds a run, gives it a new rate and five more steps, and lets it go on."""

    def act(run: LiveRun) -> None:
        held = run.pause().wait(LIMIT_S).step
        ack = run.update({"learning_rate": ASKED, "max_steps": held + 5}).wait(LIMIT_S)
        assert (ack.status, ack.step) == ("applied", held)
        steps[run.data().name] = held
        run.resume()

    return act


def test_both_stages_train_as_children_and_are_changed_while_they_do(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ftlab_mlflow")
    changed: dict[str, int] = {}
    people = [beside(tracking_uri, f"whole-{stage}", changed_once(changed)) for stage in ("reward", "policy")]
    endless = "--max_steps 100000"
    outcome = pipeline(tracking_uri, endless, output_dir="both", run_name="whole").run()
    for person in people:
        person.join(LIMIT_S)

    found = runs(tracking_uri)
    assert set(found) == {"whole", "whole-reward", "whole-policy"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert {run.info.experiment_id for run in found.values()} == {found["whole"].info.experiment_id}
    parent = outcome.run_id
    assert found["whole"].info.run_id == parent
    assert MLFLOW_PARENT_RUN_ID not in found["whole"].data.tags
    client = MlflowClient(tracking_uri)
    for stage, method in (("reward", "reward"), ("policy", "grpo")):
        run = found[f"whole-{stage}"]
        assert run.data.tags[MLFLOW_PARENT_RUN_ID] == parent
        assert json.loads(run.data.tags["ftlab.status"])["method"] == method
        rates = {p.step: p.value for p in client.get_metric_history(run.info.run_id, "learning_rate")}
        at = changed[f"whole-{stage}"]
        assert rates == {step: pytest.approx(1e-3 if step <= at else ASKED) for step in range(1, at + 6)}
        assert (tmp_path / "both" / stage / "model.safetensors").is_file()
    # The policy was rewarded by the model of the first stage.
    assert found["whole-policy"].data.metrics["rewards/reward/mean"] == pytest.approx(
        found["whole-policy"].data.metrics["reward"]
    )
    assert "score.weight" in load_file(tmp_path / "both" / "reward" / "model.safetensors")
    told = [record.getMessage() for record in caplog.records]
    assert f"Stage 1 of 2 of run {parent}: reward (reward)" in told
    assert f"Stage 2 of 2 of run {parent}: policy (grpo)" in told
    document = json.loads(json.dumps(outcome.to_dict()))
    assert (document["run_id"], document["state"], list(document["stages"])) == (
        parent,
        "finished",
        ["reward", "policy"],
    )


def test_a_stopped_stage_is_the_last_and_the_parent_says_so(tracking_uri: str, tmp_path: Path) -> None:
    person = beside(tracking_uri, "short-reward", lambda run: run.stop() and None)
    outcome = pipeline(tracking_uri, "--reward.max_steps 100000", run_name="short").run()
    person.join(LIMIT_S)
    assert (outcome.to_dict()["state"], list(outcome.stages), outcome.exit_code) == ("stopped", ["reward"], 0)
    assert {name: run.info.status for name, run in runs(tracking_uri).items()} == {
        "short": "KILLED",
        "short-reward": "KILLED",
    }


def test_a_failed_stage_is_the_last_and_the_parent_says_so(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "prefs.jsonl").write_text('{"prompt": 1, "chosen": 2, "rejected": 3}\n')
    words = ("rlhf", *QUICK.split(), "--tracking_uri", tracking_uri, "--model", "demo")
    result = CliRunner().invoke(train, [*words, "--reward.data", "prefs.jsonl", "--run_name", "bad"])
    assert isinstance(result.exception, FTLabError)
    assert re.match(r"stage reward failed: \w+Error: .*int", str(result.exception))
    assert {name: run.info.status for name, run in runs(tracking_uri).items()} == {
        "bad": "FAILED",
        "bad-reward": "FAILED",
    }


def test_a_stage_that_cannot_begin_is_named(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "prefs.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(ConfigError, match=r"^reward: .* has the columns question; reward needs "):
        pipeline(tracking_uri, "--reward.data prefs.jsonl --model demo").run()


def test_a_mistake_in_what_the_policy_needs_is_said_before_anything_begins(
    tracking_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^reward_funcs: there is no module no_such_module"):
        pipeline(tracking_uri, "--policy.reward_funcs no_such_module:f").run()
    (tmp_path / "prompts.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(ConfigError, match="has the columns question; grpo needs prompt"):
        pipeline(tracking_uri, "--policy.data prompts.jsonl --model demo").run()
    assert runs(tracking_uri) == {}


# --- the config --------------------------------------------------------------------------------------


def load(text: str | None, *options: str, **own: Any) -> Any:
    if text is not None:
        Path("rlhf.yaml").write_text(text)
    return load_pipeline("rlhf.yaml" if text is not None else None, options, **own)


BOTH = "model_name_or_path: demo\n"


def test_sections_are_for_a_stage_and_everything_else_is_for_both() -> None:
    config = load(
        BOTH + "learning_rate: 1e-4\nmax_steps: 9\nrun_name: a\nlive: {poll_interval: 3}\noutput_dir: out\n"
        "reward: {max_steps: 5, center_rewards_coefficient: 0.01}\n"
        f"policy: {{method: rloo, num_generations: 4, beta: 0.1, reward_funcs: ['{DEMO_REWARD}']}}\n",
        *("--learning-rate", "2e-4", "--policy.max-steps=7", "--reward.lora_target_modules", "a", "b"),
        *("--policy.use_peft", "--weight_decay", "0.1"),
    )
    reward, policy = config.stages["reward"], config.stages["policy"]
    assert (reward.method.name, policy.method.name, config.name) == ("reward", "rloo", "a")
    assert [c.training.learning_rate for c in (reward, policy)] == [2e-4, 2e-4]
    assert [c.training.weight_decay for c in (reward, policy)] == [0.1, 0.1]
    assert [c.training.max_steps for c in (reward, policy)] == [5, 7]
    assert [c.settings.poll_interval for c in (reward, policy)] == [3, 3]
    assert reward.model.lora_target_modules == ["a", "b"]
    assert [c.model.use_peft for c in (reward, policy)] == [False, True]
    assert reward.training.center_rewards_coefficient == 0.01
    assert (policy.training.num_generations, policy.training.beta) == (4, 0.1)
    assert [c.training.output_dir for c in (reward, policy)] == ["out/reward", "out/policy"]
    assert policy.script.reward_model_name_or_path == "out/reward"
    assert policy.script.reward_funcs == [DEMO_REWARD]
    # An option is stronger than the file, also for the method, the folder and the name.
    other = load(
        BOTH + "policy: {method: rloo}\noutput_dir: x\n", method="grpo", output_dir="y", run_name="z"
    )
    assert other.stages["policy"].method.name == "grpo"
    assert (other.stages["reward"].training.output_dir, other.name) == ("y/reward", "z")


def test_the_written_config_asks_for_the_same_pipeline() -> None:
    first = load(BOTH + "hub_token: secret\nreward: {max_steps: 5}\npolicy: {method: rloo, max_steps: 6}\n")
    text = first.as_yaml()
    assert "secret" not in text
    second = load(text)
    assert second.stages["policy"].method.name == "rloo"
    for stage in ("reward", "policy"):
        assert second.stages[stage].as_dict() == first.stages[stage].as_dict()


def test_without_a_folder_two_pipelines_do_not_share_one() -> None:
    folders = {load(None).stages["reward"].training.output_dir for _ in range(2)}
    assert len(folders) == 2
    assert all(re.fullmatch(r"outputs/[0-9a-f]{8}/reward", folder) for folder in folders)


def test_the_example_is_a_valid_config() -> None:
    config = load_pipeline(str(EXAMPLE), ())
    given = yaml.safe_load(EXAMPLE.read_text())
    assert config.stages["policy"].training.max_completion_length == given["policy"]["max_completion_length"]
    assert config.stages["reward"].settings.limits == {"learning_rate": (0, 0.01)}


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        (BOTH + "reward: 3\n", (), "rlhf.yaml: reward must be a mapping of keys to values, got 3"),
        (BOTH + "policy: {method: ppo}\n", (), "policy.method must be one of grpo, rloo, got 'ppo'"),
        (
            BOTH + "policy: {lerning_rate: 1}\n",
            (),
            "policy: rlhf.yaml: lerning_rate is unknown; did you mean",
        ),
        (BOTH + "beta: 1\n", (), "reward: rlhf.yaml: beta is unknown"),
        (BOTH, ("--reward.max_steps", "x"), "reward: --max_steps must be a whole number, got 'x'"),
        (BOTH, ("--resume",), "rlhf has no --resume: a stage goes on with `ftlab train reward --resume RUN`"),
        (BOTH, ("--reward.resume", "abc"), "rlhf has no --resume: "),
        (BOTH, ("--value.max_steps", "3"), "reward: --value.max_steps is unknown"),
        (
            BOTH + "policy: {reward_model_name_or_path: rm}\n",
            (),
            "policy: reward_model_name_or_path: rlhf trains the reward model itself; ",
        ),
        (
            BOTH,
            ("--policy.reward_model_name_or_path", "rm"),
            "policy: reward_model_name_or_path: rlhf trains",
        ),
        (BOTH, ("--policy.tracking_uri", "sqlite:///x.db"), "tracking_uri: both stages need the same"),
        ("reward: {model_name_or_path: demo}\n", (), "policy: rlhf.yaml: model_name_or_path is missing: "),
    ],
)
def test_a_mistake_names_its_stage(text: str, options: tuple[str, ...], error: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(error)):
        load(text, *options)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"^rlhf runs in one process; on several, run `ftlab train reward`"):
        load(None)


@pytest.mark.slow
def test_the_example_teaches_what_the_policy_is_never_told(tracking_uri: str) -> None:
    """The policy learns from the reward model alone; how many of its answers are numbers is only watched."""
    watched = ("--policy.reward_funcs", DEMO_REWARD, "--policy.reward_weights", "1", "0", "--disable_tqdm")
    options = ("--tracking_uri", tracking_uri, *watched)
    outcome = Pipeline(load_pipeline(str(EXAMPLE), options, output_dir="out")).run()
    client = MlflowClient(tracking_uri)

    def logged(stage: str, key: str) -> list[float]:
        history = client.get_metric_history(outcome.stages[stage].run_id, key)
        return [point.value for point in sorted(history, key=lambda point: point.step)]

    assert logged("reward", "accuracy")[-1] > 0.8
    told, seen = logged("policy", "rewards/reward/mean"), logged("policy", "rewards/sum_reward/mean")
    assert told[-1] > told[0] + 3
    assert seen[0] < 0.02
    assert seen[-1] > 0.2
