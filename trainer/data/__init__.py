"""Samples become batches of tensors: decode, augment, order, load."""

from trainer.data.batch import Batch
from trainer.data.dataset import BadCount, ImageDataset
from trainer.data.images import BadImageError
from trainer.data.loader import eval_batches, train_batches
from trainer.data.order import Order, mix, share

__all__ = ["BadCount", "BadImageError", "Batch", "ImageDataset", "Order", "eval_batches", "mix", "share", "train_batches"]
