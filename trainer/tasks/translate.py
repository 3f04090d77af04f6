"""Translation: a network that makes a picture of a picture."""

from __future__ import annotations

import torch

from trainer.config.targets import Facts
from trainer.config.tasks.translate import Config
from trainer.spec import Translator
from trainer.tasks.pictures import Pictures


def build(config: Config, facts: Facts) -> Translate:
    """The task; of the data it needs to know nothing."""
    return Translate(config)


class Translate(Pictures):
    """Of the channels of a batch the last are the target, in [-1, 1], and the others the input."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._translate = config

    @property
    def wanted(self) -> Translator:
        """What the network has to be."""
        asked = self._translate.residual
        return Translator(
            self.channels, self._translate.decoder.width, None if asked == "auto" else asked, alike=self._translate.alike
        )

    @property
    def channels(self) -> int:
        return self._translate.channels

    def cut(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs and the targets."""
        return images[:, : -self.channels], images[:, -self.channels :]
