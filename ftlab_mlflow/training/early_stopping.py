"""Early stopping of `ftlab train`: two config keys that TRL does not have, for transformers' own callback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftlab_mlflow.errors import ConfigError


@dataclass(frozen=True)
class EarlyStopping:
    """When a training ends because it no longer gets better.

    Attributes:
        early_stopping_patience: Evaluations in a row without an improvement; None trains to the end.
        early_stopping_threshold: An improvement is more than this.
    """

    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0


def complete(values: dict[str, Any], where: str) -> None:
    """Adds what early stopping needs besides, where it was asked for.

    Args:
        where: What an error begins with.

    Raises:
        ConfigError: There is nothing that it could act on.
    """
    if values.get("early_stopping_patience") is None:
        if values.get("early_stopping_threshold"):
            raise ConfigError(f"{where}early_stopping_threshold does nothing without early_stopping_patience")
        return
    if values.get("eval_strategy") in (None, "no"):
        raise ConfigError(
            f"{where}early_stopping_patience counts evaluations, but eval_strategy is no: use steps or epoch"
        )
    if values.get("metric_for_best_model") is None:
        values["metric_for_best_model"] = "loss"
    # Or else the count would begin anew when training resumes.
    values.setdefault("restore_callback_states_from_checkpoint", True)
