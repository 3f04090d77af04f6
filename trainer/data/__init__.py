"""Samples become batches of tensors: decode, augment, order, load."""

from trainer.data.batch import Batch

__all__ = ["Batch"]
