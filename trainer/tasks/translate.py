"""Translation: a network that makes a picture of a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.targets import Facts
from trainer.config.tasks.translate import Config
from trainer.spec import InputSpec, Output, Translator
from trainer.tasks.base import Batch, Perceives
from trainer.tasks.likening import TranslationMeasure

# (what was made, what should have been), both [n, c, h, w] in [-1, 1] -> the distance of each, [n]
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LEAST = 11  # pixels of a side


def build(config: Config, facts: Facts) -> Translate:
    """The task; of the data it needs to know nothing."""
    return Translate(config)


def _l1(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (made - target).abs().flatten(1).mean(dim=1)


def _mse(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (made - target).square().flatten(1).mean(dim=1)


class Translate:
    """Of the channels of a batch the last are the target, in [-1, 1], and the others the input."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._distances: dict[str, Distance] = {"l1": _l1, "mse": _mse}
        self._weights: Mapping[str, float] = {}
        self._spec: InputSpec | None = None
        self.perceives: nn.Module | None = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """None: it says nothing of images."""
        return ()

    @property
    def translator(self) -> Translator:
        """What the network has to be."""
        return Translator(self._config.channels, self._config.decoder.width)

    @property
    def loss_names(self) -> tuple[str, ...]:
        return tuple(self._config.losses)

    def fit(self, spec: InputSpec) -> None:
        """Take what the network that was built takes. Raises UserError for sizes that cannot be measured."""
        if spec.image_size < LEAST:
            raise UserError(
                f"model.adapt.image_size is {spec.image_size}, and SSIM is measured in windows of {LEAST} pixels; "
                f"write {LEAST} or more"
            )
        self._spec = spec

    @property
    def spec(self) -> InputSpec:
        if self._spec is None:
            raise RuntimeError("the task has no network yet")
        return self._spec

    def perceive(self, distance: Perceives | None, weights: Mapping[str, float]) -> None:
        """Take the distance of features, where there is one, and what each loss weighs."""
        if distance is not None:
            self._distances["perceptual"] = distance
            self.perceives = distance.network
        self._weights = weights

    def cut(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs and the targets."""
        return images[:, : -self._config.channels], images[:, -self._config.channels :]

    def run(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """What it makes of the inputs, [n, c, h, w]."""
        made: torch.Tensor = module(self.cut(batch.images)[0])
        return made

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """What it made: no loss compares it with that of another network."""
        return output

    def losses(self, output: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """The distances of what was made from the targets, by name."""
        target = self.cut(batch.images)[1]
        if len(self.loss_names) == 1:
            return {"task": self._distances[self.loss_names[0]](output.float(), target)}
        return {name: self._distances[name](output.float(), target) for name in self.loss_names}

    def weighted(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Their sum with the weights of the run file, [n]."""
        return torch.stack([value.float() * self._weights.get(name, 1.0) for name, value in losses.items()]).sum(dim=0)

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """Raises UserError: it says nothing of images."""
        raise UserError("this run makes pictures and says nothing of any; write `graft translate`")

    @property
    def scale(self) -> torch.Tensor | None:
        """None."""
        return None

    def measure(self, samples: int, device: torch.device) -> TranslationMeasure:
        """How near the pictures are to the targets, and some of them."""
        return TranslationMeasure(self, self._config, samples, device)
