"""A run that is put together: what it reads, how it measures, and what the loop asks of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trainer import rivals, strategies
from trainer.config import Run
from trainer.config.data import Uniform
from trainer.config.sources import Listing, Splits
from trainer.data import Batch
from trainer.data.buckets import Sorted
from trainer.data.companions import Accompanied
from trainer.data.dataset import BadCount, ImageDataset
from trainer.data.loader import Samples, eval_batches, train_batches
from trainer.data.order import mix
from trainer.data.pairs import PairDataset, dataset_of, loaded
from trainer.data.unpaired import UnpairedDataset
from trainer.evaluate import evaluate, refer
from trainer.features.choose import Choice
from trainer.features.kept import Features
from trainer.features.pictures import Decoded
from trainer.losses.objective import Objective
from trainer.models import Built
from trainer.optim import Average, FreeAverage, build_momentum, build_schedule
from trainer.runtime import Engine, Runtime
from trainer.spec import ParamGroup
from trainer.tasks.base import Evaluation, Phase, Task

DROPOUT = 1  # the stream of draws that dropout is seeded from


@dataclass
class Parts:
    """A run that is put together but has no progress yet."""

    run: Run
    runtime: Runtime
    splits: Splits
    built: Built
    task: Task
    phase: Phase
    engine: Engine
    average: Average | FreeAverage | None
    steps: int
    bad: BadCount
    summary: strategies.Summary
    objective: Objective | None  # where there is more than the task's own loss
    references: dict[str, str]  # fingerprints of the networks that losses look at
    features: Features | None
    others: tuple[rivals.Rival, ...]  # networks that learn against the first, each with an optimizer of its own
    decoded: Decoded | None
    groups: Sequence[ParamGroup]
    choice: Choice  # whether features are kept, and why not
    micro_batch: int  # samples; of `auto` a rank's whole share, until less is found to fit
    prior: Listing | None = None  # of a generator: samples of what it knew before, one beside each, once they are there
    evaluated: int | None = None  # samples at a time in evaluations, where twice the micro-batch did not fit
    buckets: tuple[Sorted, Sorted | None] | None = None  # of the training and the validation samples

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (self.phase, *(other.phase for other in self.others))

    def train_mode(self) -> None:
        """Every network in training mode, as its strategy has it."""
        for phase in self.phases:
            strategies.train_mode(phase.engine.module)

    @property
    def epoch_samples(self) -> int:
        return len(self.splits.train.items)

    def prepare(self, batch: Batch) -> Batch:
        """Count what could not be read, copy to the device and normalise there."""
        if batch.bad:
            self.bad.add(batch.bad)
        features = self.features is not None and self.features.train is not None
        return batch.to(self.runtime.device, None if features else loaded(self.run, self.built.spec))

    def pixels(self, batch: Batch) -> Batch:
        """The same for images themselves, whatever is kept of them."""
        self.bad.add(batch.bad)
        return batch.to(self.runtime.device, loaded(self.run, self.built.spec))

    def schedule(self) -> Callable[[int], float]:
        batch = self.run.train.global_batch
        return build_schedule(self.run.schedule, total=self.steps * batch, epoch_samples=self.epoch_samples, step_samples=batch)

    def momentum(self) -> Callable[[int], float] | None:
        batch = self.run.train.global_batch
        return build_momentum(self.run.schedule, total=self.steps * batch, epoch_samples=self.epoch_samples, step_samples=batch)

    def seed(self, step: int, rank: int, index: int) -> int:
        """What dropout is seeded with: a pure function of (seed, step, rank, micro-batch)."""
        return mix(self.run.train.seed, DROPOUT, step, rank, index)

    def dataset(
        self, listing: Listing, *, train: bool, square: bool = False
    ) -> ImageDataset | PairDataset | UnpairedDataset:  # fmt: skip
        """The samples of a listing; `square`: also where they come in buckets."""
        buckets = None
        if self.buckets is not None and not square:
            buckets = self.buckets[0] if listing is self.splits.train else self.buckets[1]
        found = dataset_of(self.run, listing, self.built.spec, train=train, buckets=buckets)
        if self.decoded is not None and isinstance(found, ImageDataset):
            self.decoded.serve(found)
        return found

    def open_features(self, at: Callable[[str], None], stop: Callable[[], bool], *, val: bool = True) -> bool:
        """Have ready what is kept of features or images, once the weights are the run's own; false where a stop was wished."""
        if self.features is None and self.decoded is None:
            return True
        train, beside = self.dataset(self.splits.train, train=True), self._prior()
        held = self.dataset(self.splits.val, train=False) if val and self.splits.val is not None else None
        assert isinstance(train, ImageDataset)  # of pairs nothing is kept
        assert held is None or isinstance(held, ImageDataset)
        if self.decoded is not None:
            return self.decoded.open([train, *([] if held is None else [held])], self.bad, at=at, stop=stop)
        assert self.features is not None
        return self.features.open(train, held, self.bad, at=at, stop=stop, prior=beside)

    def _prior(self) -> ImageDataset | None:
        """The samples of the prior, augmented like those of the data; each as often as any other."""
        if self.prior is None:
            return None
        data = self.run.data.model_copy(update={"sampling": Uniform()})
        return ImageDataset(self.prior, data, self.built.spec, train=True, seed=self.run.train.seed)

    def samples(self) -> Samples:
        """What a training reads: images, or what is kept of them, each with one of the prior beside it where there is one."""
        features = None if self.features is None else self.features.train
        samples: Samples = features or self.dataset(self.splits.train, train=True)
        kept = None if self.features is None else self.features.prior
        beside = kept or self._prior()
        return samples if beside is None else Accompanied(samples, beside, self.run.train.seed)

    def batches(self, start_step: int) -> Generator[list[Batch], None, None]:
        """The training micro-batches of this rank, step by step."""
        train, runtime = self.run.train, self.runtime
        return train_batches(
            self.samples(),
            seed=train.seed, start_step=start_step, steps=self.steps, global_batch=train.global_batch,
            micro_batch=self.micro_batch,
            rank=runtime.rank, world=runtime.world, workers=self.run.data.workers, pin=runtime.device.type == "cuda",
        )  # fmt: skip

    def evaluation_batch(self, micro_batch: int) -> int:
        """Samples at a time in an evaluation, where a training has such micro-batches."""
        return self.run.evaluate.batch or self.evaluated or 2 * micro_batch

    def evaluation(self, listing: Listing, at: Callable[[str], None]) -> Callable[[], Evaluation]:
        """A function that measures the network (its average, if there is one) over a listing; `at` hears where it is."""
        runtime, batch = self.runtime, self.evaluation_batch(self.micro_batch)
        features = self.features.val if self.features is not None and listing is self.splits.val else None
        dataset = features or self.dataset(listing, train=False)
        idle = self.idle if self.engine.lockstep else None

        def loaded(images: Samples) -> Generator[Batch, None, None]:
            return eval_batches(
                images, batch=batch, rank=runtime.rank, world=runtime.world,
                workers=self.run.data.workers, pin=runtime.device.type == "cuda",
            )  # fmt: skip

        def measured() -> Evaluation:
            measure = self.task.measure(len(dataset), runtime.device)
            images = {"val": listing, "train": self.splits.train}
            refer(measure, lambda name: self.dataset(images[name], train=False, square=True), loaded, self.pixels, at)
            return evaluate(runtime, self.engine.called, measure, loaded(dataset), self.prepare, self.average, at, idle)

        return measured

    def idle(self, network: nn.Module) -> None:
        """A forward pass as an evaluation makes it, of an image of which nothing is kept."""
        spec, nothing = loaded(self.run, self.built.spec), torch.zeros(1, dtype=torch.int64)
        image = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size, dtype=torch.uint8)
        batch = Batch(image, nothing, nothing, epochs=nothing).to(self.runtime.device, spec)
        self.task.run(network, batch)
