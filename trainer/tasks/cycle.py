"""Translation without pairs: two networks, each the way back of the other, against two critics."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.targets import Facts
from trainer.config.tasks.cycle import Config
from trainer.spec import Critic, Cyclic, InputSpec, Judge, Output, Translator
from trainer.tasks.adversary import CRITIC, MAKER, still
from trainer.tasks.base import Batch, LossFunction, Perceives
from trainer.tasks.likening import l1
from trainer.tasks.returning import OfBoth, ReturnMeasure


def build(config: Config, facts: Facts) -> Cycle:
    """The task; of the data it needs the names of the two classes. Raises UserError where there are not two."""
    return Cycle(config, config.learnt(facts)[0].target.labels)


@dataclass(frozen=True)
class Round:
    """What is made of pictures of both kinds, and what is made of that again; `same`: of what should be made (none: not asked).

    Each in [-1, 1], [n, channels of its kind, h, w]: first what is of the first kind.
    """

    made: tuple[torch.Tensor, torch.Tensor]
    again: tuple[torch.Tensor, torch.Tensor]
    same: tuple[torch.Tensor, torch.Tensor] | None


class Cycle:
    """Of the channels of a batch the last are a picture of the second kind, the others one of the first, all in [-1, 1].

    In an evaluation the label says which of both is the sample, and there is nothing in the place of the other.
    """

    def __init__(self, config: Config, classes: tuple[str, ...]) -> None:
        self._config, self.classes = config, classes
        self.kind = config.kind
        self._spec: InputSpec | None = None
        self._weights: Mapping[str, float] = config.weights
        self._critics: nn.Module | None = None
        self._made: deque[tuple[torch.Tensor, torch.Tensor]] = deque()  # micro-batches that the critics have yet to see
        self.perceives: dict[str, nn.Module] = {}
        self.likeness: OfBoth | None = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """None: it says nothing of images."""
        return ()

    @property
    def wanted(self) -> Cyclic:
        """What the networks have to be."""
        config = self._config
        residual = None if config.residual == "auto" else config.residual
        return Cyclic(Translator(config.channels, config.decoder.width, residual), config.back)

    @property
    def loss_names(self) -> tuple[str, ...]:
        return tuple(self._config.losses)

    @property
    def same(self) -> bool:
        """Whether the networks are also given what they should make."""
        return "identity" in self._config.losses

    def fit(self, spec: InputSpec, network: nn.Module, seed: int) -> None:
        """Take what the networks take."""
        self._spec = spec

    @property
    def spec(self) -> InputSpec:
        if self._spec is None:
            raise RuntimeError("the task has no network yet")
        return self._spec

    @property
    def channels(self) -> tuple[int, int]:
        """Of a picture of the first kind, and of the second."""
        return self.spec.in_channels, self._config.channels

    def liken(self, judge: Judge) -> None:
        """Measure how like each class what is made of the other is, by these features, as `fidelity` says."""
        assert self._config.fidelity is not None
        self.likeness = OfBoth(self._config.fidelity, judge)

    def perceive(self, distances: Mapping[str, Perceives], weights: Mapping[str, float]) -> None:
        """Take what each loss weighs; no features are compared."""
        self._weights = weights

    def critic(self) -> tuple[Critic, ...]:
        """One of each kind of pictures."""
        asked = self._config.adversary
        return tuple(Critic(channels, asked.width, asked.layers, asked.rate) for channels in self.channels)

    def oppose(self, network: nn.Module) -> LossFunction:
        """Learn against these critics; returns their own loss, [n]. What was made in the networks' own pass is what they see: no
        pictures of earlier steps are kept, which would be a state."""
        self._critics = network
        losses = CRITIC[self._config.adversary.loss]

        def judge(module: nn.Module, batch: Batch) -> torch.Tensor:
            pairs = zip(self.cut(batch.images), self._made.popleft(), strict=True)
            said = module(*(torch.cat([real, made.to(real.dtype)]) for real, made in pairs))
            of_kinds = [losses(*answer.float().chunk(2)).flatten(1).mean(dim=1) for answer in said]
            return torch.stack(of_kinds).sum(dim=0)

        return judge

    def cut(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The pictures of the first kind and of the second."""
        first = self.channels[0]
        return images[:, :first], images[:, first:]

    def run(self, module: nn.Module, batch: Any) -> Round:
        """A way there and back from both kinds."""
        second, first, *more = module(*self.cut(batch.images), self.same)
        again = (more[0], more[1])
        return Round((first, second), again, (more[3], more[2]) if self.same else None)

    def measured(self, network: nn.Module, batch: Batch) -> Round:
        """What the networks give of a whole batch; the figures are of less, see `ReturnMeasure`."""
        return self.run(network, batch)

    def logits(self, output: Round) -> torch.Tensor:
        """What it made: no loss compares it with that of another network."""
        return output.made[1]

    def losses(self, output: Round, batch: Batch) -> dict[str, torch.Tensor]:
        """Zhu, Park, Isola and Efros 2017: equations 1 to 3 and the identity of section 5.2, each the sum over both ways, [n]."""
        if self._critics is None:
            raise RuntimeError("the task has no critics yet")
        first, second = output.made
        self._made.append((first.detach(), second.detach()))
        with still(self._critics):
            said = self._critics(first, second)
        deceived = [MAKER[self._config.adversary.loss](answer.float()).flatten(1).mean(dim=1) for answer in said]
        real = self.cut(batch.images)
        found = {"adversarial": torch.stack(deceived).sum(dim=0), "cycle": _apart(output.again, real)}
        if output.same is not None:
            found["identity"] = _apart(output.same, real)
        return found

    def weighted(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Their sum with the weights of the run, [n]."""
        return torch.stack([value * self._weights.get(name, 1.0) for name, value in losses.items()]).sum(dim=0)

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """Raises UserError: it says nothing of images."""
        raise UserError("this run makes pictures and says nothing of any")

    @property
    def scale(self) -> torch.Tensor | None:
        """None."""
        return None

    def measure(self, samples: int, device: torch.device) -> ReturnMeasure:
        """How near pictures of both classes come to themselves again, and some of them."""
        return ReturnMeasure(self, self._config.samples.count, samples, device)


def _apart(made: tuple[torch.Tensor, torch.Tensor], real: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The mean absolute difference of the first kind and of the second, both together, [n]."""
    return torch.stack([l1(one.float(), other) for one, other in zip(made, real, strict=True)]).sum(dim=0)
