"""A trained network as a folder that needs no graft: weights, settings, a model card and a program."""

from trainer.export.folder import export
from trainer.export.scale import fold

__all__ = ["export", "fold"]
