"""What a metric's name says: which way is better, and whether it is a share."""

from __future__ import annotations

from collections.abc import Iterable

_LOWER = {"loss", "error", "ece", "brier", "mae", "rmse", "mse", "kl", "forgetting"}
# of generated images from the data, or from their targets; with other features than theirs a name follows
_DISTANCES = {"fid", "kid", "fd", "kd", "lpips"}
_SHARES = {"accuracy", "top5", "f1", "precision", "recall", "map", "exact"}
_FIRST = ("accuracy", "map", "psnr", "mae")  # what a task is judged by, if by nothing else
_MOST = 8  # metrics in one line


def word(metric: str) -> str:
    """The metric without where it was measured and of which head: `mae` of `val/age_mae`."""
    return metric.rsplit("/", 1)[-1].rsplit("_", 1)[-1]


def lower_is_better(metric: str) -> bool:
    """Whether the lowest value of a metric is its best: `val/loss`, `val/age_mae`."""
    return word(metric) in _LOWER or distance(metric) is not None


def distance(metric: str) -> str | None:
    """Which distance of pictures it is: `fid`, `kid` or `lpips`, or `fd`, `kd` with other features; none: no such."""
    first = metric.rsplit("/", 1)[-1].partition("_")[0]
    return first if first in _DISTANCES else None


def is_share(metric: str) -> bool:
    """Whether it is told in percent."""
    return word(metric) in _SHARES


def leading(metrics: Iterable[str]) -> list[str]:
    """The validation metrics to show first: accuracy, mean average precision or mean error, of each head; then the loss."""
    known = [metric for metric in dict.fromkeys(metrics) if metric.startswith("val/")]
    ranked = {metric.removesuffix("map") + "accuracy" for metric in known if word(metric) == "map"}  # which says more of labels
    first = [metric for metric in known if word(metric) in _FIRST and metric not in ranked]
    return first + [metric for metric in known if metric == "val/loss"]


def few(metrics: Iterable[str]) -> list[str]:
    """The validation metrics for one line: all, or the leading ones where several heads have many."""
    known = [metric for metric in metrics if metric.startswith("val/")]
    return known if len(known) <= _MOST else leading(known)
