"""Processes, devices, precision and sharding: the one room that knows Accelerate, DeepSpeed and torch.distributed."""

from trainer.runtime.engine import Engine
from trainer.runtime.pace import Pace
from trainer.runtime.ranks import Runtime

__all__ = ["Engine", "Pace", "Runtime"]
