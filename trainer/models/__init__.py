"""Pretrained networks from anywhere, adapted to the task: one module a scheme of `model.source`, found by name."""

import logging

from trainer.models.base import Built, LoadReport
from trainer.models.build import build_model, needs

# which diffusers imports, says what it lacks on every machine without a kernel of its own: nothing here uses it
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__all__ = ["Built", "LoadReport", "build_model", "needs"]
