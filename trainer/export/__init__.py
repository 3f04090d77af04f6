"""A trained network as a folder that needs no graft: weights, settings, a model card and a program."""

from trainer.export.autoencoder import export_autoencoder
from trainer.export.cycle import export_cycle
from trainer.export.folder import export
from trainer.export.gan import export_gan
from trainer.export.generator import export_generator
from trainer.export.scale import fold
from trainer.export.translator import export_translator

__all__ = [
    "export", "export_autoencoder", "export_cycle", "export_gan", "export_generator", "export_translator", "fold",
]  # fmt: skip
