"""Checkpoints: staged in memory at once, written by a thread, committed once, verified on load."""

from trainer.checkpoint.cost import Cost, longest
from trainer.checkpoint.fill import fill
from trainer.checkpoint.read import Tensors, averaged, read
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.store import Loaded, Store

__all__ = ["Cost", "Loaded", "Saver", "Store", "Tensors", "averaged", "fill", "longest", "read"]
