"""Optimizers, learning-rate schedules as functions of samples seen, and averages of the weights."""

from trainer.optim.average import Average, FreeAverage
from trainer.optim.optimizers import build_optimizer, set_momentum
from trainer.optim.schedules import build_momentum, build_schedule, reaction
from trainer.optim.state import group_counters, pack, set_group_counters, unpack

__all__ = [
    "Average",
    "FreeAverage",
    "build_momentum",
    "build_optimizer",
    "build_schedule",
    "group_counters",
    "pack",
    "reaction",
    "set_group_counters",
    "set_momentum",
    "unpack",
]
