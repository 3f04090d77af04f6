"""Pretrained networks from anywhere, adapted to the task: one module a scheme of `model.source`, found by name."""

from trainer.models.base import Built, LoadReport
from trainer.models.build import build_model, needs

__all__ = ["Built", "LoadReport", "build_model", "needs"]
