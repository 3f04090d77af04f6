"""What a person sees of a running training: the console and, if asked for, Weights & Biases."""

from trainer.track.console import Console
from trainer.track.wandb_sink import WandbSink

__all__ = ["Console", "WandbSink"]
