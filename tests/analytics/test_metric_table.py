"""What the table knows of metrics, against what real trainings log and the trainers' own source."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import mlflow.system_metrics.metrics
import pytest
from training_trl import new_trainer, rows, save_tiny_model

from ftlab_mlflow.analytics.metric_table import RULES, Group, charts, describe
from ftlab_mlflow.training.methods import METHODS
from ftlab_mlflow.training.run_numbers import METRICS, RunNumbers

# transformers, of TRL's own defaults.
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")
ONLINE = ("grpo", "rloo")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=METHODS)
def logged(
    request: pytest.FixtureRequest, model: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, set[str]]:
    """A method, and every key of a real training with it that transformers hands to MLflow."""
    method = request.param
    one = rows(method, 4)
    trainer = new_trainer(
        method, model, tmp_path_factory.mktemp(method), RunNumbers(),
        max_steps=2, eval_strategy="steps", eval_steps=2,
        eval_dataset=one if method == "orpo" else {"dev": one, "held_out": one},  # ORPO takes one set only
    )  # fmt: skip
    trainer.train()
    return method, {key for entry in trainer.state.log_history for key in entry}


# --- what trainings log ------------------------------------------------------------------------------


def test_every_metric_of_a_real_training_is_known(logged: tuple[str, set[str]]) -> None:
    method, keys = logged
    losses = ("loss", "eval_loss") if method == "orpo" else ("loss", "eval_dev_loss", "eval_held_out_loss")
    assert {*losses, "learning_rate", "grad_norm", "tokens_per_second"} <= keys
    assert {key for key in keys if describe(key).group is Group.OTHER} == set()

    drawn = charts(keys)
    shown = [key for chart in drawn for key in chart.keys]
    assert len(shown) == len(set(shown))
    assert len({chart.title for chart in drawn}) == len(drawn)
    counters = {"epoch", "step", "total_flos", "eta_s", "train_loss", "best_eval_step"}
    of_sums = re.compile("best_.*|.*runtime|.*num_tokens|(train|eval)_.*_per_second")
    assert keys - set(shown) == {key for key in keys if key in counters or of_sums.fullmatch(key)}

    chart = next(chart for chart in drawn if chart.title == "Loss")
    assert chart.keys == losses
    assert chart.log == (method not in ONLINE)
    assert drawn[0].title == ("Reward" if method in ONLINE else "Loss")


@pytest.mark.parametrize("method", METHODS)
def test_every_metric_that_a_trainer_can_log_is_known(method: str) -> None:
    """Also those that only some settings bring: names as they are written in TRL's source."""
    source = inspect.getsourcefile(METHODS[method].trainer_class())
    assert source is not None
    names = _names_in(Path(source).read_text(encoding="utf-8"))
    assert len(names) >= 4
    assert {name for name in names if describe(name).group is Group.OTHER} == set()
    assert {name for name in names if describe(f"eval_{name}").base != name} == set()


def _names_in(source: str) -> set[str]:
    """Keys of ``metrics[…]``, ``…_metrics[mode][…]``; what is filled in is named x, a prefix is nothing."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and "metrics" in ast.unparse(node.value):
            if isinstance(node.slice, ast.Constant):
                found.add(str(node.slice.value).removeprefix("eval_"))
            elif isinstance(node.slice, ast.JoinedStr):
                text = ast.unparse(node.slice)[2:-1]
                found.add(re.sub(r"\{.*?\}", "x", text.replace("{prefix}", "")))
    return {name for name in found if name not in ("train", "eval") and "mode" not in name}


def test_our_own_numbers_are_known() -> None:
    names = [re.sub("<metric>", "eval_loss", re.sub("<i>", "0", name)) for name in METRICS]
    assert {name for name in names if describe(name).group is Group.OTHER} == set()


def test_mlflows_system_metrics_are_known_one_by_one() -> None:
    """Names as they are written in MLflow's source; the rule for the rest of `system/` is not needed."""
    folder = Path(mlflow.system_metrics.metrics.__path__[0])
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    names = set(re.findall(r'^ *self\._metrics\[\s*f?"([^"]+)"', source, re.MULTILINE))
    assert len(names) >= 12
    for name in names:
        metric = describe("system/" + name.replace("{i}", "0"))
        assert metric.group is Group.SYSTEM
        assert metric.unit, name
    drawn = charts("system/" + name.replace("{i}", str(gpu)) for name in names for gpu in (0, 2, 10))
    assert not any(chart.has_steps for chart in drawn)
    use = next(chart for chart in drawn if chart.title == "GPU utilization")
    assert use.keys == tuple(f"system/gpu_{gpu}_utilization_percentage" for gpu in (0, 2, 10))


# --- one metric --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "base", "title", "is_eval", "dataset", "better"),
    [
        ("loss", "loss", "Loss", False, "", "lower"),
        ("train_loss", "loss", "Loss", False, "", "lower"),
        ("train/loss", "loss", "Loss", False, "", "lower"),
        ("eval_loss", "loss", "Eval loss", True, "", "lower"),
        ("eval/loss", "loss", "Eval loss", True, "", "lower"),
        ("val_loss", "loss", "Eval loss", True, "", "lower"),
        ("test_loss", "loss", "Eval loss (test)", True, "test", "lower"),
        ("eval_dev_loss", "loss", "Eval loss (dev)", True, "dev", "lower"),
        ("eval_my_dev_loss", "loss", "Eval loss (my_dev)", True, "my_dev", "lower"),
        ("eval/dev/loss", "loss", "Eval loss (dev)", True, "dev", "lower"),
        ("eval_nll_loss", "nll_loss", "Eval NLL loss", True, "", "lower"),
        ("best_eval_loss", "best_eval_loss", "Best eval loss", True, "", "lower"),
        ("eval_dev_rewards/margins", "rewards/margins", "Eval reward margin (dev)", True, "dev", "higher"),
        ("rewards/chosen", "rewards/chosen", "Reward of chosen", False, "", None),
        ("eval_rewards/len/mean", "rewards/len/mean", "Eval reward len", True, "", "higher"),
        ("rewards/len/std", "rewards/len/std", "Reward len spread", False, "", None),
        ("eval_mean_token_accuracy", "mean_token_accuracy", "Eval token accuracy", True, "", "higher"),
        ("eval_kl", "kl", "Eval KL to the reference", True, "", None),
        ("grad_norm", "grad_norm", "Gradient norm", False, "", None),
        ("live/learning_rate", "live/learning_rate", "learning_rate, as set live", False, "", None),
        ("value_loss", "value_loss", "value_loss", False, "", "lower"),
        ("eval_MyScore", "MyScore", "Eval MyScore", True, "", None),
        ("train_set_size", "train_set_size", "train_set_size", False, "", None),
        ("valuable", "valuable", "valuable", False, "", None),
        ("odd\nname", "odd\nname", "odd\nname", False, "", None),
    ],
)
def test_a_name_is_understood(
    key: str, base: str, title: str, is_eval: bool, dataset: str, better: str | None
) -> None:
    metric = describe(key)
    assert (metric.base, metric.title, metric.is_eval, metric.dataset, metric.better) == (
        base, title, is_eval, dataset, better,
    )  # fmt: skip


def test_the_loss_of_online_methods_has_no_better() -> None:
    assert describe("loss", "sft").better == "lower"
    assert [describe(key, method).better for key in ("loss", "eval_loss") for method in ONLINE] == [None] * 4


def test_units() -> None:
    expected = {
        "tokens_per_second": "tokens/s", "eval_samples_per_second": "samples/s", "step_time_s": "s",
        "eval_dev_runtime": "s", "gpu_3_peak_memory_mb": "MB", "completions/mean_length": "tokens",
        "loss": "", "learning_rate": "", "system/gpu_0_power_usage_watts": "W",
    }  # fmt: skip
    assert {key: describe(key).unit for key in expected} == expected


def test_titles_refer_to_what_their_patterns_have() -> None:
    for rule in RULES:
        references = {int(number) for number in re.findall(r"\\(\d)", rule.title + rule.unit)}
        assert references <= set(range(1, re.compile(rule.pattern).groups + 1)), rule


# --- charts ------------------------------------------------------------------------------------------


def test_what_is_not_known_is_drawn_after_what_is() -> None:
    drawn = charts(["zeta", "eval_zeta", "alpha", "system/cpu_utilization_percentage", "entropy", "loss"])
    assert [(chart.title, chart.keys) for chart in drawn] == [
        ("Loss", ("loss",)),
        ("Entropy", ("entropy",)),
        ("alpha", ("alpha",)),
        ("zeta", ("zeta", "eval_zeta")),
        ("CPU utilization", ("system/cpu_utilization_percentage",)),
    ]
    assert charts([]) == []


def test_a_loss_of_a_training_without_transformers_is_drawn() -> None:
    (drawn,) = charts(["train_loss", "val_loss", "epoch"])
    assert drawn.keys == ("train_loss", "val_loss")


def test_metrics_of_one_chart_have_one_unit() -> None:
    by_chart: dict[str, set[str]] = {}
    for rule in RULES:
        if rule.chart and rule.chart != "GPU memory in use":  # MB of NVIDIA's, GB of AMD's: never both
            by_chart.setdefault(rule.chart, set()).add(rule.unit)
    assert {chart: found for chart, found in by_chart.items() if len(found) > 1} == {}
