"""Which way a metric is better, by its name."""

from __future__ import annotations

_LOWER = {"loss", "error", "ece", "brier", "mae", "rmse", "mse", "forgetting"}


def lower_is_better(metric: str) -> bool:
    """Whether the lowest value of a metric is its best: `val/loss`, `val/age_mae`."""
    return metric.rsplit("/", 1)[-1].rsplit("_", 1)[-1] in _LOWER
