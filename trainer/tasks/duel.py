"""Both sides of a gan: what the generator minimises, and what its critic does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import nn

from trainer.config.tasks.gan import Config
from trainer.tasks.adversary import CRITIC, MAKER, still
from trainer.tasks.augment import augmented
from trainer.tasks.base import Keyed

SHARE = "augment_share"  # the name of a buffer of the critic
_GAMMA = 0.0002  # of the penalty, for each pixel of an image and over the samples of a step
_DECEIVE, _REAL, _MADE = 100, 200, 300  # the first streams of the draws of changes


class Duel:
    """A critic, and the losses of both sides, one value a sample.

    What the generator made in its own pass, micro-batch by micro-batch, is what the critic learns from afterwards. What is done
    at a step follows from the samples before it, from the keys of the samples and, of adaptive changes, from a buffer of the
    critic, which is saved with it.
    """

    def __init__(
        self, config: Config, critic: nn.Module, seed: int, global_batch: int,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:  # fmt: skip
        self._config, self._critic, self._seed, self._batch = config, critic, seed, global_batch
        self._sum = sum_over_ranks
        self._made: deque[torch.Tensor] = deque()
        self._step = 0
        like = next(critic.parameters())
        self._signs = torch.zeros(2, dtype=torch.float64, device=like.device)  # their sum at this step, and how many
        augment = config.augment
        self._share = torch.tensor([0.0 if augment is None else augment.begins], device=like.device)
        adaptive = None if augment is None else augment.adaptive
        if adaptive is not None:
            critic.register_buffer(SHARE, self._share)
        self._adaptive = adaptive
        self.columns = ("critic/real", "critic/made", *(() if adaptive is None else ("critic/share",)))

    @property
    def share(self) -> torch.Tensor:
        """How much of what the critic sees is changed, [1]."""
        return self._share if self._adaptive is None else self._critic.get_buffer(SHARE)

    def deceive(self, made: torch.Tensor, batch: Keyed) -> torch.Tensor:
        """The generator's loss of what it made for a batch, [n]; the critic's parameters take no gradient of it."""
        self._made.append(made.detach())
        with still(self._critic):
            said = self._said(self._critic, self._changed(made, batch, _DECEIVE), batch.labels)
        return MAKER[self._config.loss](said).mean(dim=1)

    def __call__(self, module: nn.Module, batch: Keyed) -> torch.Tensor:
        """The critic's loss, then `columns`; both kinds of images go through it at once."""
        made, real, every = self._made.popleft(), batch.images, self._config.r1.every
        weight = self._config.r1.weight
        if weight is None:
            weight = _GAMMA * real.shape[2] * real.shape[3] / self._batch
        penalised = weight > 0 and self._step % every == 0
        if penalised:
            real = real.detach().requires_grad_()
        shown = [self._changed(real, batch, _REAL), self._changed(made.to(real.dtype), batch, _MADE)]
        said = self._said(module, torch.cat(shown), torch.cat([batch.labels, batch.labels]))
        of_real, of_made = said.chunk(2)
        loss = CRITIC[self._config.loss](of_real, of_made).mean(dim=1)
        if penalised:
            (slope,) = torch.autograd.grad(of_real.mean(dim=1).sum(), real, create_graph=True)
            loss = loss + weight / 2 * every * slope.float().square().flatten(1).sum(dim=1)
        told = [of_real.detach().mean(dim=1), of_made.detach().mean(dim=1)]
        if self._adaptive is not None:
            self._signs += torch.stack([told[0].sign().double().sum(), torch.ones_like(told[0]).double().sum()])
            told.append(self.share.expand(len(loss)))
        return torch.stack([loss, *told], dim=1)

    def stage(self, samples: int) -> bool:
        """The samples before the step that begins."""
        self._step = samples // self._batch
        return False

    def settle(self, samples: int, *, good: bool) -> None:
        """After every so many steps more is changed, or less, as the signs of what is said of real images say."""
        adaptive = self._adaptive
        if adaptive is not None and good and self._step % adaptive.every == 0:
            total, count = self._sum(self._signs).unbind()
            by = torch.sign(total / count - adaptive.target) * (adaptive.every * self._batch / adaptive.images)
            self.share.copy_((self.share + by.to(self.share.dtype)).clamp(0, 1))
        self._signs.zero_()

    def _changed(self, images: torch.Tensor, batch: Keyed, stream: int) -> torch.Tensor:
        """Images as the critic sees them; the two kinds and the two sides are changed by draws of their own."""
        augment = self._config.augment
        if augment is None:
            return images
        place = batch.epochs.to(images.device, non_blocking=True), batch.indices.to(images.device, non_blocking=True)
        return augmented(images, augment.changes, self.share, self._seed, stream, *place)

    def _said(self, module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[n, numbers]: one, or one a patch."""
        told = () if self._config.condition == "none" else (labels,)
        said: torch.Tensor = module(images, *told).float()
        return said.reshape(len(said), -1)
