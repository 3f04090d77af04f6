"""Pretrained networks from anywhere, adapted to the task: one module a scheme of `model.source`, found by name."""

from trainer.models.base import Built, LoadReport

__all__ = ["Built", "LoadReport"]
