"""A generator of latents that learns against a critic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.targets import Facts
from trainer.config.tasks.gan import Config
from trainer.pixels import pixels
from trainer.spec import InputSpec, Judge, Output, Pair
from trainer.tasks import draws
from trainer.tasks.base import Evaluation, Keyed
from trainer.tasks.duel import Duel
from trainer.tasks.likeness import Likeness
from trainer.tasks.making import MakingMeasure
from trainer.tasks.sampler import noise
from trainer.tasks.told import Classes, Told

LATENT = 1  # the stream of the draws of latents


def build(config: Config, facts: Facts) -> Gan:
    """The task for the classes of the data, where it looks at them."""
    learnt = config.learnt(facts)
    counts = [count for known in learnt for count in known.counts]
    return Gan(config, [label for known in learnt for label in known.target.labels], counts)


@dataclass(frozen=True)
class Drawn:
    """How images are made of seeds: of latents no further from 0 than `truncation` in any number; none: of any."""

    truncation: float | None
    steps: int = 1


class Gan:
    """Latents are functions of (seed, epoch, sample), the classes those of the batch; the critic comes with the network."""

    def __init__(self, config: Config, classes: Sequence[str], counts: Sequence[int]) -> None:
        self._config = config
        self._classes, self._counts = tuple(classes), tuple(counts)
        self.told = Classes(classes, dropped=False) if classes else Told()
        self._likeness: Likeness | None = None
        self._duel: Duel | None = None
        self._seed, self._latent, self._image = 0, 0, (0, 0)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """None: it says nothing of images."""
        return ()

    @property
    def generator(self) -> Pair:
        """What both networks are told."""
        return Pair(self._classes)

    def image(self) -> tuple[int, int]:
        """Channels and side of an image."""
        return self._image

    def fit(self, spec: InputSpec, network: nn.Module, seed: int) -> None:
        """Take the network that was built and what it makes."""
        latent: Any = network.latent
        self._seed, self._latent, self._image = seed, int(latent), (spec.in_channels, spec.image_size)

    def oppose(
        self, critic: nn.Module, global_batch: int, sum_over_ranks: Callable[[torch.Tensor], torch.Tensor]
    ) -> Duel:  # fmt: skip
        """Learn against this network; what it is to minimise itself."""
        self._duel = Duel(self._config, critic, self._seed, global_batch, sum_over_ranks)
        return self._duel

    def compare(self, judge: Judge) -> None:
        """Measure how like the data the images are, by the features of this judge."""
        self._likeness = Likeness(self._config.fidelity, judge, self._counts)

    def number(self, word: str) -> int:
        """The number of a class. Raises UserError for one that there is not."""
        return self.told.number(word)

    def shown(self) -> list[int]:
        """The classes, in turn."""
        return list(range(len(self._classes))) or [0]

    def word(self, number: int) -> str:
        """The class of a number; nothing where the networks are told of none."""
        return self.told.words[number] if self.told.words else ""

    def plan(self) -> Drawn:
        """How images are made, as the run file says."""
        return Drawn(self._config.samples.truncation)

    def run(self, module: nn.Module, batch: Keyed) -> torch.Tensor:
        """Images of latents by the keys of the samples, of their classes."""
        place = (at.to(batch.images.device, non_blocking=True) for at in (batch.epochs, batch.indices))
        latents = draws.normal(draws.keys(self._seed, LATENT, *place), (self._latent,))
        made: torch.Tensor = module(latents, *self.told(batch.labels).values())
        return made

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """The images: no loss compares them with those of another network."""
        return output

    def losses(self, output: torch.Tensor, batch: Keyed) -> dict[str, torch.Tensor]:
        """How far from deceiving the critic each is."""
        if self._duel is None:
            raise RuntimeError("the generator has no critic yet")
        return {"task": self._duel.deceive(output.float(), batch)}

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        classes: Sequence[int],
        plan: Drawn,
        step: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Images, uint8 [n, c, h, w] on the CPU, of seeds and, where the network is told of them, of classes by number."""
        device = next(network.parameters()).device
        latents, _ = noise(seeds, (self._latent,))
        if plan.truncation is not None:
            latents = truncated(latents, plan.truncation)
        numbers = torch.tensor(classes, dtype=torch.int64, device=device)
        images = network(latents.to(device), *self.told(numbers).values())
        step()
        return pixels(images).cpu()

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """Raises UserError: it says nothing of images."""
        raise UserError("this run makes images and says nothing of any; write `graft sample`")

    @property
    def scale(self) -> torch.Tensor | None:
        """None."""
        return None

    def measure(self, samples: int, device: torch.device) -> GanMeasure:
        """How like the data the images are, and images of fixed seeds."""
        return GanMeasure(self, self._config.samples, self._config.fidelity, self._likeness)


class GanMeasure(MakingMeasure):
    """How like the data the images of a gan are."""

    def result(self) -> Evaluation:
        """The distances, and the sheet."""
        metrics, about = self.likeness()
        return Evaluation(metrics, {"kind": "gan", **about}, self.sheet())


def truncated(latents: torch.Tensor, most: float) -> torch.Tensor:
    """Normal latents as ones of the normal distribution without what is further from 0 than `most`: each keeps its rank."""
    inside = 0.5 * (1 + math.erf(most / math.sqrt(2)))  # below `most`
    places = torch.special.ndtr(latents.double()) * (2 * inside - 1) + (1 - inside)
    found: torch.Tensor = torch.special.ndtri(places).clamp(-most, most).float()
    return found
