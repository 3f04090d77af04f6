"""What tasks have in common whose networks make pictures that can be compared with what they should be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.pictures import Adversary
from trainer.config.pictures import Pictures as Config
from trainer.spec import Critic, InputSpec, Output
from trainer.tasks.adversary import Opponent
from trainer.tasks.base import Batch, LossFunction, Perceives
from trainer.tasks.likening import PictureMeasure, Ruler, l1

# (what was made, what should have been), both [n, c, h, w] in [-1, 1] -> the distance of each, [n]
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _mse(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (made - target).square().flatten(1).mean(dim=1)


class Pictures(ABC):
    """Of the channels of a batch the last are the target, in [-1, 1], and the others the input."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.kind, self.seed = config.kind, 0
        self.pairs = True  # whether the input is another picture than the target
        self._distances: dict[str, Distance] = {"l1": l1, "mse": _mse}
        self._weights: Mapping[str, float] = {}
        self._spec: InputSpec | None = None
        self._opponent: Opponent | None = None
        self.perceives: dict[str, nn.Module] = {}
        self.ruler = Ruler(config.lpips)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """None: it says nothing of images."""
        return ()

    def critic(self) -> Critic | None:
        """The network that the pictures have to deceive, where there is one."""
        if "adversarial" not in self._config.chosen:
            return None
        found = self._config.adversary or Adversary()
        given = self.spec.in_channels if self.shown(found) else 0
        return Critic(given + self.channels, found.width, found.layers, found.rate)

    def shown(self, adversary: Adversary) -> bool:
        """Whether the critic sees the input beside the picture."""
        return adversary.shown_input

    def oppose(self, network: nn.Module) -> LossFunction:
        """Learn against this critic; returns its own loss, [n]."""
        found = self._config.adversary or Adversary()
        opponent = self._opponent = Opponent(found, network, shown=self.shown(found))

        def judge(module: nn.Module, batch: Batch) -> torch.Tensor:
            return opponent.judge(module, *self.cut(batch.images))

        return judge

    @property
    def loss_names(self) -> tuple[str, ...]:
        return self._config.chosen

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of what is made."""

    def run(self, module: nn.Module, batch: Any) -> Any:
        """What it gives for the inputs, in training."""
        return self.measured(module, batch)

    def fit(self, spec: InputSpec, network: nn.Module, seed: int) -> None:
        """Take what the network that was built takes. Raises UserError for sizes that cannot be measured."""
        self.ruler.fits(self.channels if self.pairs else spec.in_channels, spec.image_size)
        self._spec, self.seed = spec, seed

    @property
    def spec(self) -> InputSpec:
        if self._spec is None:
            raise RuntimeError("the task has no network yet")
        return self._spec

    def perceive(self, distances: Mapping[str, Perceives], weights: Mapping[str, float]) -> None:
        """Take the distances of features that there are, and what each loss weighs."""
        self._distances |= distances
        self.perceives = {name: distance.network for name, distance in distances.items()}
        self.ruler = Ruler(self._config.lpips, distances.get("lpips"))
        self._weights = weights

    @abstractmethod
    def cut(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs and the targets."""

    def made(self, output: Any) -> torch.Tensor:
        """The pictures, [n, c, h, w], of what a network gave."""
        picture: torch.Tensor = output
        return picture

    def measured(self, network: nn.Module, batch: Batch) -> Any:
        """What a network gives in an evaluation."""
        return network(self.cut(batch.images)[0])

    @property
    def more_names(self) -> tuple[str, ...]:
        """Those of `more`."""
        return ()

    def more(self, output: Any) -> dict[str, torch.Tensor]:
        """Further figures of what it gave, each [n]."""
        return {}

    def logits(self, output: Any) -> torch.Tensor:
        """What it made: no loss compares it with that of another network."""
        return self.made(output)

    def losses(self, output: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The distances of what was made from the targets, by name, and how far from deceiving the critic it is."""
        given, target = self.cut(batch.images)
        found = self.distances(output, target)
        if self._opponent is not None:
            found["adversarial"] = self._opponent.deceive(given, self.made(output))
        return found if len(self.loss_names) > 1 else {"task": found[self.loss_names[0]]}

    def distances(self, output: Any, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of the losses that need no critic, each [n]."""
        made, more = self.made(output).float(), self.more(output)
        wanted = [name for name in self.loss_names if name != "adversarial"]
        return {name: more[name] if name in more else self._distances[name](made, target) for name in wanted}

    def weighted(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Their sum with the weights of the run file, [n]."""
        alone = len(self.loss_names) == 1
        factors = {name: self._weights.get("task" if alone else name, 1.0) for name in losses}
        return torch.stack([value.float() * factors[name] for name, value in losses.items()]).sum(dim=0)

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """Raises UserError: it says nothing of images."""
        raise UserError("this run makes pictures and says nothing of any")

    @property
    def scale(self) -> torch.Tensor | None:
        """None."""
        return None

    def measure(self, samples: int, device: torch.device) -> PictureMeasure:
        """How near the pictures are to the targets, and some of them."""
        return PictureMeasure(self, self._config.samples.count, samples, device)
