"""Translation: a network that makes a picture of a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.targets import Facts
from trainer.config.tasks.translate import Adversary, Config
from trainer.spec import Critic, InputSpec, Output, Translator
from trainer.tasks.adversary import Opponent
from trainer.tasks.base import Batch, LossFunction, Perceives
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
        self._opponent: Opponent | None = None
        self.perceives: nn.Module | None = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """None: it says nothing of images."""
        return ()

    @property
    def translator(self) -> Translator:
        """What the network has to be."""
        return Translator(self._config.channels, self._config.decoder.width)

    def critic(self) -> Critic | None:
        """The network that the pictures have to deceive, where there is one."""
        if "adversarial" not in self._config.losses:
            return None
        found = self._config.adversary or Adversary()
        given = self.spec.in_channels if found.shown_input else 0
        return Critic(given + self._config.channels, found.width, found.layers, found.rate)

    def oppose(self, network: nn.Module) -> LossFunction:
        """Learn against this critic; returns its own loss, [n]."""
        opponent = self._opponent = Opponent(self._config.adversary or Adversary(), network)

        def judge(module: nn.Module, batch: Batch) -> torch.Tensor:
            return opponent.judge(module, *self.cut(batch.images))

        return judge

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
        """The distances of what was made from the targets, by name, and how far from deceiving the critic it is."""
        given, target = self.cut(batch.images)
        found = self.distances(output, target)
        if self._opponent is not None:
            found["adversarial"] = self._opponent.deceive(given, output)
        return found if len(self.loss_names) > 1 else {"task": found[self.loss_names[0]]}

    def distances(self, output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of the losses that need no critic, each [n]."""
        return {name: self._distances[name](output.float(), target) for name in self.loss_names if name != "adversarial"}

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
