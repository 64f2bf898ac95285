"""What `ftlab train` reads: files, options, environment; every mistake is named before anything is loaded."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
from trl.scripts.utils import DatasetMixtureConfig

from ftlab_mlflow.errors import ConfigError
from ftlab_mlflow.settings import Settings
from ftlab_mlflow.training.config import DEMO_DEFAULTS, TrainConfig, load_config
from ftlab_mlflow.training.methods import METHODS

SFT = METHODS["sft"]
TRL_TYPES = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)
EXAMPLE = Path(__file__).parents[2] / "examples" / "sft.yaml"
LORA = """
model_name_or_path: Qwen/Qwen2-0.5B
dataset_name: trl-lib/Capybara
dataset_config: null
learning_rate: 2.0e-4
num_train_epochs: 1
packing: true
max_length: null
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
eos_token: '<|im_end|>'
eval_strategy: steps
eval_steps: 100
bf16: false
logging_steps: 25
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
model_init_kwargs: {use_cache: false}
use_peft: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.1
lora_target_modules: [q_proj, v_proj]
report_to: none
output_dir: Qwen2-0.5B-SFT
"""


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("sft.yaml").write_text(text)
        return "sft.yaml"

    return write


BASE = "model_name_or_path: demo\n"
MISTAKES = [
    # what the file says (None: no file), the options, the error
    (BASE + "lerning_rate: 1e-4", (), "sft.yaml: lerning_rate is unknown; did you mean learning_rate?"),
    (BASE + "max_seq_length: 64", (), "sft.yaml: max_seq_length is unknown; did you mean max_length?"),
    (BASE + "xyzzy: 1", (), "sft.yaml: xyzzy is unknown"),
    (BASE + "1: 2", (), "sft.yaml: 1 is unknown"),
    (BASE + "learning_rate: abc", (), "sft.yaml: learning_rate must be a number, got 'abc'"),
    (BASE + "learning_rate: [1]", (), "sft.yaml: learning_rate must be a number, got [1]"),
    (BASE + "learning_rate: true", (), "sft.yaml: learning_rate must be a number, got True"),
    (BASE + "learning_rate: .nan", (), "sft.yaml: learning_rate must be a number, got nan"),
    (BASE + "learning_rate: null", (), "sft.yaml: learning_rate must be a number, got None"),
    (BASE + "learning_rate: -1e-4", (), "sft.yaml: learning_rate must be at least 0, got '-1e-4'"),
    (BASE + "max_steps: 10.5", (), "sft.yaml: max_steps must be a whole number, got 10.5"),
    (BASE + "max_steps: .inf", (), "sft.yaml: max_steps must be a whole number, got inf"),
    (BASE + "max_length: x", (), "sft.yaml: max_length must be null or a whole number, got 'x'"),
    (
        BASE + "per_device_train_batch_size: 0",
        (),
        "sft.yaml: per_device_train_batch_size must be at least 1, got 0",
    ),
    (BASE + "packing: maybe", (), "sft.yaml: packing must be true or false, got 'maybe'"),
    (BASE + "run_name: [a]", (), "sft.yaml: run_name must be null or a string, got ['a']"),
    (
        BASE + "save_strategy: often",
        (),
        "sft.yaml: save_strategy must be one of no, steps, epoch, best, got 'often'",
    ),
    (
        BASE + "dtype: fp8",
        (),
        "sft.yaml: dtype must be one of auto, bfloat16, float16, float32, got 'fp8'",
    ),
    (
        BASE + "datasets: [{pth: x}]",
        (),
        "sft.yaml: datasets[0].pth is unknown; did you mean path?",
    ),
    (BASE + "datasets: x", (), "sft.yaml: datasets must be a list of mappings, got 'x'"),
    (BASE + "datasets: [{name: x}]", (), "sft.yaml: DatasetConfig.__init__() missing 1 required"),
    (BASE + "env: [A]", (), "sft.yaml: env must be a mapping of names to values, got ['A']"),
    (BASE + "env: {A: [1]}", (), "sft.yaml: env.A must be one plain value, got [1]"),
    (BASE + "live: 1", (), "sft.yaml: live must be a mapping, got 1"),
    (
        BASE + "live: {pol_interval: 1}",
        (),
        "sft.yaml: live.pol_interval is no setting; there are tracking_uri, poll_interval, rank_sync_steps,",
    ),
    (
        BASE + "live: {poll_interval: 0}",
        (),
        "sft.yaml: live.poll_interval must be seconds above 0, got 0",
    ),
    (
        BASE + "live: {limits: {learning_rate: 3}}",
        (),
        "sft.yaml: live.limits must be a (min, max) pair of numbers by parameter, such as",
    ),
    (
        BASE + "load_best_model_at_end: true\neval_strategy: epoch",
        (),
        "sft.yaml: --load_best_model_at_end requires the save and eval strategy to match",
    ),
    (
        BASE + "load_in_4bit: true\nload_in_8bit: true",
        (),
        "sft.yaml: You can't use 8 bit and 4 bit precision at the same time",
    ),
    ("dataset_name: demo", (), "sft.yaml: model_name_or_path is missing: --model takes a folder, "),
    ("model_name_or_path: gpt2", (), "sft.yaml: dataset_name is missing: --data takes a file, a folder"),
    (
        BASE + "dataset_name: no/such/file.jsonl",
        (),
        "sft.yaml: dataset_name: there is no file or folder no/such/file.jsonl",
    ),
    (
        BASE + "resume_from_checkpoint: ./gone",
        (),
        "sft.yaml: resume_from_checkpoint: there is no folder ./gone",
    ),
    (
        BASE + "resume_from_checkpoint: true\noutput_dir: .",
        (),
        "sft.yaml: resume_from_checkpoint: there is no whole checkpoint in output_dir (.)",
    ),
    ("a: [1", (), "--config: sft.yaml is no YAML: expected ',' or ']', but got '<stream end>' (line 1)"),
    ("- a", (), "--config: sft.yaml must hold a YAML mapping (key: value), got ['a']"),
    ("", (), "--config: sft.yaml must hold a YAML mapping (key: value), got None"),
    (None, ("--model", "./gone"), "model_name_or_path: there is no file or folder ./gone"),
    (None, ("--data", "x.jsonl"), "model_name_or_path is missing: --model takes a folder, a model on"),
    (None, ("--learning-rat", "1"), "--learning-rat is unknown; did you mean learning_rate?"),
    (None, ("--learning-rate", "abc"), "--learning_rate must be a number, got 'abc'"),
    (None, ("--learning_rate",), "--learning_rate needs a value"),
    (None, ("--max_steps", "3", "4"), "--max_steps takes one value; '4' belongs to no option"),
    (None, ("1e-4",), "'1e-4' belongs to no option; options are --key value"),
    (None, ("--datasets", "x"), "--datasets can only be given in the config file"),
    (None, ("--poll_interval", "fast"), "--poll_interval must be seconds above 0, got 'fast'"),
    (None, ("--rank_sync_steps", "0"), "--rank_sync_steps must be a whole number of steps from 1, got '0'"),
    (None, ("--limits", "{a: ["), "--limits is no YAML: "),
]


@pytest.mark.parametrize(("text", "options", "error"), MISTAKES)
def test_a_mistake_is_named_on_one_line(
    config_file: Any, text: str | None, options: tuple[str, ...], error: str
) -> None:
    path = None if text is None else config_file(text)
    with pytest.raises(ConfigError, match="^" + re.escape(error)) as raised:
        load_config(SFT, path, options)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_missing_file_and_a_file_that_is_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--config: there is no file nope\.yaml$"):
        load_config(SFT, "nope.yaml", ())
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(SFT, str(tmp_path), ())
    (tmp_path / "latin.yaml").write_bytes("run_name: fünf".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(SFT, str(tmp_path / "latin.yaml"), ())


def by_trl(path: str, *options: str, types: tuple[Any, ...] = TRL_TYPES) -> tuple[Any, ...]:
    """The same file and options as TRL's own parser understands them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return TrlParser(types).parse_args_and_config(["--config", path, *options])


def as_dict(arguments: Any, *without: str) -> dict[str, Any]:
    values = dataclasses.asdict(arguments)
    return {key: value for key, value in values.items() if key not in without}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--learning_rate", "3e-5", "--max-length", "none", "--no_gradient_checkpointing"),
        ("--packing", "false", "--lora_target_modules", "k_proj", "o_proj", "--logging_steps", "2"),
        ("--use_rslora", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.2}', "--save_steps=7"),
    ],
)
def test_a_trl_file_means_what_it_means_to_trl(config_file: Any, options: tuple[str, ...]) -> None:
    path = config_file(LORA)
    ours = load_config(SFT, path, options)
    script, training, model, mixture = by_trl(path, *options)
    changed = ("report_to", "dataloader_pin_memory")  # MLflow is always reported to; no accelerator here
    assert as_dict(ours.training, *changed) == as_dict(training, *changed)
    assert as_dict(ours.model) == as_dict(model)
    assert as_dict(ours.script) == as_dict(script)
    assert as_dict(ours.mixture) == as_dict(mixture)
    assert ours.training.report_to == ["mlflow"]


OF_METHOD = {
    "sft": "neftune_noise_alpha: 5\npacking: true",
    "dpo": "beta: 0.2\nloss_type: [sigmoid, bco_pair]\nloss_weights: [0.8, 0.2]\nlabel_smoothing: 0.1",
    "orpo": "beta: 0.2\nmax_length: 512\ndisable_dropout: false",
    "kto": "desirable_weight: 1.5\nundesirable_weight: 1\nloss_type: apo_zero_unpaired",
    "reward": "center_rewards_coefficient: 0.01\nlora_task_type: SEQ_CLS\nmax_length: null",
    "grpo": "reward_funcs: [a.b, think_format_reward]\nreward_weights: [1, 0.5]\nscale_rewards: false\n"
    "epsilon_high: 0.28\ntop_p: 0.9\nloss_type: dr_grpo\ngeneration_kwargs: {typical_p: 0.9}",
    "rloo": "reward_model_name_or_path: some/model\nnormalize_advantages: true\nbeta: 0\nnum_generations: 2",
}


@pytest.mark.parametrize("name", list(METHODS))
def test_a_file_of_every_method_means_what_it_means_to_trl(config_file: Any, name: str) -> None:
    method = METHODS[name]
    types = (method.script_class(), method.config_class(), ModelConfig, DatasetMixtureConfig)
    path = config_file(f"model_name_or_path: gpt2\ndataset_name: a/b\nbf16: false\n{OF_METHOD[name]}\n")
    options = ("--learning_rate", "3e-5", "--max_steps", "7")
    ours = load_config(method, path, options)
    theirs = by_trl(path, *options, types=types)
    changed = ("report_to", "dataloader_pin_memory")
    for mine, other in zip((ours.script, ours.training, ours.model, ours.mixture), theirs, strict=True):
        assert type(mine) is type(other)
        assert as_dict(mine, *changed) == as_dict(other, *changed)
    again = load_config(method, config_file(ours.as_yaml()), ())
    assert as_dict(again.training) == as_dict(ours.training)
    assert as_dict(again.script) == as_dict(ours.script)


def test_a_list_or_pair_of_numbers_is_checked() -> None:
    demo = ("--model", "demo", "--data", "demo")
    options = (*demo, "--reward_clip_range", "-1", "1.5")  # TRL's own parser does not take it
    assert load_config(METHODS["rloo"], None, options).training.reward_clip_range == (-1, 1.5)
    with pytest.raises(ConfigError, match="--reward_weights must be null or a list of numbers, got"):
        load_config(METHODS["grpo"], None, (*demo, "--reward_weights", "x"))
    with pytest.raises(ConfigError, match="--reward_clip_range must be null or 2 numbers, got"):
        load_config(METHODS["rloo"], None, (*demo, "--reward_clip_range", "1"))


def test_a_batch_that_nobody_asked_for_holds_whole_groups_of_answers() -> None:
    def sizes(*options: str) -> tuple[int, int]:
        training = load_config(METHODS["grpo"], None, options).training
        return training.per_device_train_batch_size, training.per_device_eval_batch_size

    assert sizes() == (32, 32)
    assert sizes("--num_generations", "3") == (33, 33)
    assert sizes("--num_generations", "3", "--per_device_train_batch_size", "6") == (6, 33)
    assert sizes("--num_generations", "4", "--num_generations_eval", "5") == (32, 35)
    assert sizes("--num_generations", "3", "--gradient_accumulation_steps", "3") == (32, 33)
    text = r"per_device_train_batch_size: 4 holds no whole groups of num_generations \(3\); 6 would"
    with pytest.raises(ConfigError, match=text):
        sizes("--num_generations", "3", "--per_device_train_batch_size", "4")


def test_a_mixture_of_datasets_is_read_as_trl_reads_it(config_file: Any) -> None:
    path = config_file(
        "model_name_or_path: gpt2\nbf16: false\ntest_split_size: 0.1\n"
        "datasets:\n  - {path: json, data_files: a.jsonl, columns: [text]}\n  - {path: b/c, fraction: 0.5}\n"
    )
    assert load_config(SFT, path, ()).mixture == by_trl(path)[3]


def test_an_option_wins_over_the_file_and_an_empty_one_is_not_given(config_file: Any) -> None:
    path = config_file(BASE + "learning_rate: 1e-4\nmax_steps: 7\nrun_name: ''\neval_strategy: no\n")
    config = load_config(SFT, path, ("--learning-rate", "5e-5", "--max_steps", "", "--data", "", "--seed="))
    assert config.training.learning_rate == 5e-5
    assert config.training.max_steps == 7
    assert config.training.run_name is None
    assert config.training.eval_strategy == "no"
    assert config.script.dataset_name == "demo"
    assert config.training.seed == 42


def test_a_number_written_with_an_exponent_is_a_number(config_file: Any) -> None:
    assert yaml.safe_load("5e-5") == "5e-5"  # the trap
    assert load_config(SFT, config_file(BASE + "learning_rate: 5e-5"), ()).training.learning_rate == 5e-5


def test_several_values_may_come_as_one_word(config_file: Any) -> None:
    config = load_config(SFT, None, ("--model", "demo", "--lora_target_modules", "q_proj, v_proj"))
    assert config.model.lora_target_modules == ["q_proj", "v_proj"]
    all_linear = load_config(SFT, config_file(BASE + "lora_target_modules: all-linear"), ())
    assert all_linear.model.lora_target_modules == "all-linear"


def test_nothing_at_all_is_the_demo_and_a_file_gets_none_of_its_defaults(config_file: Any) -> None:
    demo = load_config(SFT, None, ())
    assert demo.model.model_name_or_path == demo.script.dataset_name == "demo"
    for name, value in DEMO_DEFAULTS.items():
        assert getattr(demo.training, name) == value
    assert {"max_steps", "bf16"} <= demo.defaulted
    epochs = load_config(SFT, None, ("--num_train_epochs", "2", "--learning_rate", "1e-3"))
    assert epochs.training.max_steps == SFTConfig.max_steps
    assert "learning_rate" not in epochs.defaulted
    from_file = load_config(SFT, config_file(BASE), ())
    assert from_file.training.learning_rate == SFTConfig.learning_rate
    assert from_file.training.max_length == SFTConfig.max_length


SECRETS = "hub_token: secret\nenv: {FTLAB_T: secret}\ndataset_kwargs: {token: secret}\n"


def test_the_written_config_asks_for_the_same_training(config_file: Any) -> None:
    first = load_config(SFT, config_file(LORA + SECRETS), ())
    os.environ.pop("FTLAB_T")
    text = first.as_yaml(output_dir="elsewhere", run_name="r")
    assert "secret" not in text
    second = load_config(SFT, config_file(text), ())
    changed = ("output_dir", "run_name", "hub_token", "dataset_kwargs")
    assert as_dict(second.training, *changed) == as_dict(first.training, *changed)
    assert (second.training.output_dir, second.training.run_name) == ("elsewhere", "r")
    assert (second.model, second.script, second.settings) == (first.model, first.script, first.settings)


def test_the_example_is_a_valid_config() -> None:
    config = load_config(SFT, str(EXAMPLE), ("--max_steps", "1"))
    assert config.settings.limits == {"learning_rate": (0, 0.01)}
    given = yaml.safe_load(EXAMPLE.read_text())
    assert {key: float(given[key]) for key in ("learning_rate", "warmup_steps")} == {
        "learning_rate": 1e-3,
        "warmup_steps": 10,
    }


def test_the_environment_section_is_set_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("env: {FTLAB_TEST: 5, FTLAB_POLL_INTERVAL: 2.5}\nx: 1\n" + BASE)
    program = (
        "import os, sys\n"
        "from ftlab_mlflow.training import config, methods\n"
        "assert 'torch' not in sys.modules and 'trl' not in sys.modules\n"
        "class Stop(Exception): pass\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'trl', 'transformers'):\n"
        "            print(os.environ['FTLAB_TEST'], os.environ['FTLAB_POLL_INTERVAL'])\n"
        "            raise Stop\n"
        "sys.meta_path.insert(0, Finder())\n"
        "try:\n"
        "    config.load_config(methods.METHODS['sft'], 'sft.yaml', ())\n"
        "except Stop:\n"
        "    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["5", "2.5"]


# --- settings ----------------------------------------------------------------------------------------


def test_argument_wins_over_environment_over_file_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("FTLAB_POLL_INTERVAL", raising=False)
    assert Settings.resolve({}) == Settings(tracking_uri=None, poll_interval=1.0, limits={})
    file = {"poll_interval": 2, "tracking_uri": "sqlite:///file.db"}
    assert Settings.resolve({}, file).poll_interval == 2
    monkeypatch.setenv("FTLAB_POLL_INTERVAL", "3")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///env.db")
    assert Settings.resolve({}, file).poll_interval == 3
    assert Settings.resolve({}, file).tracking_uri == "sqlite:///env.db"
    monkeypatch.setenv("FTLAB_RANK_SYNC_STEPS", "7")
    assert Settings.resolve({}, {"rank_sync_steps": 3}).rank_sync_steps == 7
    assert Settings.resolve({"poll_interval": "4"}, file).poll_interval == 4
    assert Settings.resolve({"poll_interval": ""}, file).poll_interval == 3
    assert Settings.resolve({"tracking_uri": "sqlite:///arg.db"}, file).tracking_uri == "sqlite:///arg.db"


def test_a_setting_that_is_wrong_is_named_where_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLAB_POLL_INTERVAL", "soon")
    with pytest.raises(ConfigError, match=r"^FTLAB_POLL_INTERVAL must be seconds above 0, got 'soon'$"):
        Settings.resolve({})
    with pytest.raises(ConfigError, match=r"^--poll_interval must be seconds above 0, got True$"):
        Settings.resolve({"poll_interval": True})
    with pytest.raises(ConfigError, match=r"^c\.yaml: live\.limits must be"):
        Settings.resolve({"poll_interval": 1}, {"limits": {"learning_rate": [0]}}, "c.yaml")


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.poll_interval = 5.0  # type: ignore[misc]


def test_limits_may_be_given_as_an_option() -> None:
    config: TrainConfig = load_config(
        SFT, None, ("--limits", '{"learning_rate": [0, 1e-3], "seed": [1, null]}')
    )
    assert config.settings.limits == {"learning_rate": (0, 0.001), "seed": (1, None)}
