"""Diffusion: a network that takes noise out of images, and so makes images of noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.noise import Samples
from trainer.config.targets import Facts
from trainer.config.tasks.diffusion import Config
from trainer.spec import Beside, Generator, Judge, Output
from trainer.tasks import draws
from trainer.tasks.base import Batch, Keyed, Perceives, WithPrior
from trainer.tasks.denoising import DenoisingMeasure
from trainer.tasks.likeness import Likeness
from trainer.tasks.likening import Ruler
from trainer.tasks.process import At, Process, process
from trainer.tasks.repainting import PairMeasure
from trainer.tasks.sampler import Plan, begin, sample, scheduler
from trainer.tasks.told import Classes, Silence, Texts, Told, Unread

NOISE, TIMES, DROP, LATENT = 1, 2, 3, 4  # streams of draws
MEASURED = 16  # the first stream of an evaluation's
PRIOR = 32  # and of the samples that preserve what was known


def build(config: Config, facts: Facts) -> Diffusion:
    """The task for the classes of the data, where it looks at them, and after them those that only the prior has."""
    learnt = config.learnt(facts)
    labels = [label for known in learnt for label in known.target.labels]
    counts = [count for known in learnt for count in known.counts]
    more = [] if config.prior is None else [name for name in config.prior.classes if name not in labels]
    return Diffusion(config, labels + more, counts + [0] * len(more))


def _told(config: Config, classes: Sequence[str]) -> Told:
    if config.condition == "text":
        return Texts(classes, config.template)
    return Classes(classes, dropped=config.drop > 0) if classes else Told()


@dataclass(frozen=True)
class Denoised:
    """What a network said of noised images, what it should have said, both [n, c, h, w], and where they stood."""

    said: torch.Tensor
    target: torch.Tensor
    at: At


class Diffusion:
    """Noise is added to images, and the network says what it was; all draws are functions of (seed, epoch, sample).

    Of pairs, the channels of a batch are the source picture's, then the image's, both in [-1, 1]; the network is given the source
    as it is, on latents their mean.
    """

    def __init__(self, config: Config, classes: Sequence[str], counts: Sequence[int]) -> None:
        self._config = config
        self._classes, self._counts = tuple(classes), tuple(counts)
        self.told = _told(config, self._classes)
        self._likeness: Likeness | None = None
        self.ruler = Ruler(config.lpips)
        self.perceives: dict[str, nn.Module] = {}
        self._seed = 0
        self._beside: Beside | None = None
        self._process: Process | None = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """None: it says nothing of images."""
        return ()

    @property
    def generator(self) -> Generator:
        """What the network is told, and what it makes."""
        dropped = bool(self._classes) and self._config.drop > 0
        config = self._config
        text, source = config.condition == "text", config.pairs is not None
        return Generator(self._classes, dropped, config.vae, text, source, config.distilled_guidance)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """That of the data, and where there is one that of the prior."""
        return ("task",) if self._config.prior is None else ("task", "prior")

    def bind(self, beside: Beside, seed: int) -> None:
        """Take what stands beside the network that was built. Raises UserError where it does not go with the settings."""
        self._beside, self._seed = beside, seed
        self._process = process(
            self._config, beside.schedule, latents=beside.vae is not None, flow=beside.flow is not None, betas=beside.betas
        )
        steps, asked = self._process.steps, self._config.samples.steps
        if asked > steps:
            raise UserError(
                f"task.samples.steps is {asked}, more than the {steps} time steps of the noise; write {steps} or less"
            )
        begin(scheduler(self._process.settings, self._config.samples.sampler), beside, asked)
        if self._config.figures:
            self.ruler.fits(*beside.image)
        if beside.text is not None and not isinstance(self.told, Texts):
            self.told = Silence()
        if isinstance(self.told, Texts):
            self.told.encoder = beside.text

    def ready(self, device: torch.device) -> None:
        """Encode the texts of the data."""
        self.told.ready(device)

    def unread(self) -> None:
        """Do without the weights of the text encoders: what is told has its shapes alone. Texts can be encoded no more."""
        if isinstance(self.told, Texts):
            assert self.beside.text is not None
            self.beside.text.leave()
            self.told = Unread(self.told)

    def number(self, word: str) -> int:
        """The number of a class, or of any text. Raises UserError for a class that there is not."""
        return self.told.number(word)

    def caption(self, text: str) -> int:
        """The number of a caption, as the data has it."""
        return self.told.caption(text) if isinstance(self.told, Texts) else self.told.number(text)

    def shown(self) -> list[int]:
        """What images are shown of, in turn, by number: the prompts of the run file, else the classes, or the first captions."""
        prompts = self._config.samples.prompts
        return [self.told.number(prompt) for prompt in prompts] or list(range(len(self._classes))) or [0]

    def word(self, number: int) -> str:
        """The class or the text of a number; nothing where the network is told of none."""
        return self.told.words[number] if self.told.words else ""

    def compare(self, judge: Judge) -> None:
        """Measure how like the data the images are, by the features of this judge, as `fidelity` says."""
        assert self._config.fidelity is not None
        self._likeness = Likeness(self._config.fidelity, judge, self._counts)

    def gauge(self, lpips: Perceives | None) -> None:
        """Measure translations by LPIPS as well, where the run file asks for it."""
        self.ruler = Ruler(self._config.lpips, lpips)
        self.perceives = {} if lpips is None else {"lpips": lpips.network}

    @property
    def beside(self) -> Beside:
        if self._beside is None:
            raise RuntimeError("the task has no network yet")
        return self._beside

    def image(self) -> tuple[int, int]:
        """Channels and side of an image."""
        return self.beside.image

    @property
    def process(self) -> Process:
        if self._process is None:
            raise RuntimeError("the task has no network yet")
        return self._process

    def schedule(self) -> Mapping[str, Any]:
        """Settings of a scheduler of diffusers that takes the noise out again."""
        return self.process.settings

    def plan(self, samples: Samples | None = None) -> Plan:
        """How images are made of noise, as the run file or `samples` says."""
        asked = samples or self._config.samples
        return Plan(self.process.settings, asked.sampler, asked.steps, asked.guidance, self.told.nothing)

    @property
    def first_seed(self) -> int:
        """Of the noise that the first picture is made of."""
        return self._config.samples.seed

    def run(self, module: nn.Module, batch: WithPrior) -> Denoised:
        """Add the noise of each sample's own key, at the time of its own key, and ask the network; the prior's samples, if there
        are any, come after those of the data in the same pass."""
        source, images = self._cut(batch.images)
        noised = [self._noised(batch, images, 0)]
        if batch.prior is not None:
            noised.append(self._noised(batch.prior, batch.prior.images, PRIOR))
        images, classes, places, keys = (torch.cat(part) for part in zip(*noised, strict=True))
        return self._denoise(module, images, self.told(classes) | source, self.process.at(places), keys)

    def _noised(
        self, batch: Keyed, images: torch.Tensor, stream: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean images, what is told of them, their places in the noise, and keys of the noise, by these streams of draws."""
        device = batch.images.device
        place = batch.epochs.to(device, non_blocking=True), batch.indices.to(device, non_blocking=True)
        times = draws.uniform(draws.keys(self._seed, stream + TIMES, *place))
        classes = batch.labels
        if self.told.nothing is not None:
            dropped = draws.uniform(draws.keys(self._seed, stream + DROP, *place)) < self._config.drop
            classes = torch.where(dropped, self.told.nothing, classes)
        images = self._clean(images, draws.keys(self._seed, stream + LATENT, *place))
        return images, classes, times, draws.keys(self._seed, stream + NOISE, *place)

    def _cut(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What the network is told of a source picture, of pairs, and what noise is to be added to."""
        if not self.beside.source:
            return {}, images
        given, images = images.chunk(2, dim=1)
        return self._source(given), images

    def _source(self, given: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"source": given if self.beside.vae is None else self.beside.vae.encode(given)[0]}

    def _clean(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """What noise is added to: the images, or latents drawn by these keys from what the autoencoder says of them.

        Where that is kept, mean and deviation [n, 2 * channels, size, size] come in place of the images, which are larger.
        """
        beside = self.beside
        if beside.vae is None:
            return images
        kept = images.shape[1:] == (2 * beside.channels, beside.size, beside.size)
        mean, deviation = images.chunk(2, dim=1) if kept else beside.vae.encode(images)
        return mean + deviation * draws.normal(keys, mean.shape[1:])

    def _denoise(
        self, module: nn.Module, images: torch.Tensor, told: Mapping[str, torch.Tensor], at: At, keys: torch.Tensor
    ) -> Denoised:  # fmt: skip
        """What the network says of images with the noise of these keys."""
        noise = draws.normal(keys, images.shape[1:])
        said = self.beside.call(module, at.alpha * images + at.sigma * noise, at.times, told)
        return Denoised(said[:, : self.beside.channels], self.process.target(images, noise, at), at)

    def measured(self, network: nn.Module, batch: Batch) -> Iterator[Denoised]:
        """Like `run` with noise that is the same at every evaluation, at several times of each sample: one in each of as many
        parts of equal probability. No class is dropped."""
        count, indices = self._config.draws, batch.indices.to(batch.images.device)
        source, images = self._cut(batch.images)
        images = self._clean(images, draws.keys(self._seed, MEASURED + LATENT, indices))
        told = self.told(batch.labels) | source
        for draw in range(count):
            place = torch.full_like(indices, draw), indices
            within = draws.uniform(draws.keys(self._seed, MEASURED + TIMES, *place))
            keys = draws.keys(self._seed, MEASURED + NOISE, *place)
            yield self._denoise(network, images, told, self.process.at((draw + within) / count), keys)

    def logits(self, output: Denoised) -> torch.Tensor:
        """What the network said: no loss compares it with that of another network."""
        return output.said

    def losses(self, output: Denoised, batch: WithPrior) -> dict[str, torch.Tensor]:
        """The squared error of what the network said, weighted by its time, of the data and of the prior."""
        found = self.error(output).reshape(len(self.loss_names), -1)
        return dict(zip(self.loss_names, found, strict=True))

    def error(self, output: Denoised) -> torch.Tensor:
        """The weighted squared error of each sample, [n]."""
        square = (output.said.float() - output.target).square().flatten(1).mean(dim=1)
        return square * self.process.weights(output.at)

    def sample(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        classes: Sequence[int],
        plan: Plan,
        step: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Images, uint8 [n, c, h, w] on the CPU, of seeds and, where the network is told of them, classes or texts by number."""
        device = next(network.parameters()).device
        numbers = torch.tensor(classes, dtype=torch.int64, device=device)
        nothing = self.told.nothing
        untold = None if nothing is None or plan.guidance == 1 else self.told(torch.full_like(numbers, nothing))
        return sample(network, self.beside, plan, seeds, self.told(numbers), untold, device, step)

    def translate(
        self, network: nn.Module, given: torch.Tensor, seeds: Sequence[int], plan: Plan, step: Callable[[], None] = lambda: None
    ) -> torch.Tensor:  # fmt: skip
        """Images, uint8 [n, c, h, w] on the CPU, of source pictures in [-1, 1] and of the seeds of their noise."""
        given = given.to(next(network.parameters()).device)
        told = self.told(torch.zeros(len(given), dtype=torch.int64, device=given.device)) | self._source(given)
        return sample(network, self.beside, plan, seeds, told, None, given.device, step)

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """Raises UserError: it says nothing of images."""
        raise UserError("this run makes images and says nothing of any; write `graft sample`, or `graft translate`")

    @property
    def scale(self) -> torch.Tensor | None:
        """None."""
        return None

    def measure(self, samples: int, device: torch.device) -> DenoisingMeasure:
        """The loss, and images of fixed seeds, or of source pictures."""
        if self._config.pairs is not None:
            return PairMeasure(self, self._config, device, samples)
        return DenoisingMeasure(self, self._config, device, self._likeness)
