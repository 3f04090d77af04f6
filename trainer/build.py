"""Puts a run together: data, network, strategy, optimizer and task become a Job for the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from trainer import restored, strategies  # noqa: F401 (restored: what a `run:` source is read with)
from trainer.checkpoint import fill
from trainer.config import RefusedError, Run, UserError, nearest
from trainer.config.amounts import Amount
from trainer.config.arithmetic import rank_shares, total_steps
from trainer.config.optimizers import ScheduleFree
from trainer.config.sources import Listing, Splits, open_splits
from trainer.data import Batch
from trainer.data.dataset import BadCount, ImageDataset
from trainer.data.loader import Samples, eval_batches, train_batches
from trainer.data.order import mix
from trainer.evaluate import evaluate, refer
from trainer.export.scale import foldable
from trainer.features.choose import Choice, choose, granted
from trainer.features.kept import Features
from trainer.features.latents import LatentChoice, Latents, choose_latents
from trainer.judges import give
from trainer.learning import build_objective, gradients_apart, learnt_by, named_parameters, references, unchanged
from trainer.losses.objective import Learner, Objective, Plain
from trainer.models import Built, build_model
from trainer.optim import Average, FreeAverage, build_momentum, build_optimizer, build_schedule, pack, unpack
from trainer.references import fingerprint
from trainer.runtime import Runtime
from trainer.spec import ParamGroup
from trainer.tasks import build_task
from trainer.tasks.base import Evaluation, Generates, Phase, Task, wanted

log = logging.getLogger("graft")
Made = TypeVar("Made")
DROPOUT, WEIGHTS, ADAPTERS, PROJECTIONS = 1, 2, 3, 4  # keep the streams drawn from one seed apart


@dataclass
class Parts:
    """A run that is put together but has no progress yet; `called` is the network, or what is called in its place."""

    run: Run
    runtime: Runtime
    splits: Splits
    built: Built
    task: Task
    phase: Phase
    called: nn.Module
    average: Average | FreeAverage | None
    steps: int
    bad: BadCount
    summary: strategies.Summary
    objective: Objective | None = None  # where there is more than the task's own loss
    references: dict[str, str] = field(default_factory=dict)  # fingerprints of the networks that losses look at
    features: Features | None = None
    groups: Sequence[ParamGroup] = ()
    choice: Choice | None = None  # whether features are kept, and why not

    @property
    def epoch_samples(self) -> int:
        return len(self.splits.train.items)

    def prepare(self, batch: Batch) -> Batch:
        """Count what could not be read, copy to the device and normalise there."""
        if batch.bad:
            self.bad.add(batch.bad)
        features = self.features is not None and self.features.train is not None
        return batch.to(self.runtime.device, None if features else self.built.spec)

    def pixels(self, batch: Batch) -> Batch:
        """The same for images themselves, whatever is kept of them."""
        self.bad.add(batch.bad)
        return batch.to(self.runtime.device, self.built.spec)

    def schedule(self) -> Callable[[int], float]:
        batch = self.run.train.global_batch
        return build_schedule(self.run.schedule, total=self.steps * batch, epoch_samples=self.epoch_samples, step_samples=batch)

    def momentum(self) -> Callable[[int], float] | None:
        batch = self.run.train.global_batch
        return build_momentum(self.run.schedule, total=self.steps * batch, epoch_samples=self.epoch_samples, step_samples=batch)

    def seed(self, step: int, rank: int, index: int) -> int:
        """What dropout is seeded with: a pure function of (seed, step, rank, micro-batch)."""
        return mix(self.run.train.seed, DROPOUT, step, rank, index)

    def dataset(self, listing: Listing, *, train: bool) -> ImageDataset:
        return ImageDataset(listing, self.run.data, self.built.spec, train=train, seed=self.run.train.seed)

    def open_features(self, at: Callable[[str], None], stop: Callable[[], bool], *, val: bool = True) -> bool:
        """Have the features ready, where some are kept, once the weights are the run's own; false where a stop was wished."""
        if self.features is None:
            return True
        held = self.dataset(self.splits.val, train=False) if val and self.splits.val is not None else None
        return self.features.open(self.dataset(self.splits.train, train=True), held, self.bad, at=at, stop=stop)

    def batches(self, start_step: int) -> Generator[list[Batch], None, None]:
        """The training micro-batches of this rank, step by step."""
        train, runtime = self.run.train, self.runtime
        share = max(rank_shares(train.global_batch, runtime.world))
        features = None if self.features is None else self.features.train
        return train_batches(
            features or self.dataset(self.splits.train, train=True),
            seed=train.seed, start_step=start_step, steps=self.steps, global_batch=train.global_batch,
            micro_batch=share if train.micro_batch == "auto" else train.micro_batch,
            rank=runtime.rank, world=runtime.world, workers=self.run.data.workers, pin=runtime.device.type == "cuda",
        )  # fmt: skip

    def evaluation(self, listing: Listing, at: Callable[[str], None]) -> Callable[[], Evaluation]:
        """A function that measures the network (its average, if there is one) over a listing; `at` hears where it is."""
        runtime, train = self.runtime, self.run.train
        features = self.features.val if self.features is not None and listing is self.splits.val else None
        dataset = features or self.dataset(listing, train=False)
        share = max(rank_shares(train.global_batch, runtime.world))
        batch = self.run.evaluate.batch or 2 * (share if train.micro_batch == "auto" else train.micro_batch)

        def loaded(images: Samples) -> Generator[Batch, None, None]:
            return eval_batches(
                images, batch=batch, rank=runtime.rank, world=runtime.world,
                workers=self.run.data.workers, pin=runtime.device.type == "cuda",
            )  # fmt: skip

        def measured() -> Evaluation:
            measure = self.task.measure(len(dataset), runtime.device)
            images = {"val": listing, "train": self.splits.train}
            refer(measure, lambda name: self.dataset(images[name], train=False), loaded, self.pixels, at)
            return evaluate(runtime, self.called, measure, loaded(dataset), self.prepare, self.average, at)

        return measured


def build(
    run: Run, runtime: Runtime, saved: dict[str, Any] | None, *, accept_changes: bool = False, load_weights: bool = True
) -> Parts:
    """Put a run together; `saved` is the state of its own checkpoint, which will be loaded over the pretrained weights.

    Without `load_weights` nothing is read or downloaded but an autoencoder: the shapes are right, the values are not.

    Raises UserError for everything in the run file that does not fit the data, the weights or the network, RefusedError for a
    teacher that changed since (unless `accept_changes`).
    """
    rank_shares(run.train.global_batch, runtime.world)  # refuses more ranks than samples before anything is downloaded
    splits = open_splits(run.data, run.train.seed, flat=run.task.flat)
    task = build_task(run.task, splits.train.facts)
    if load_weights:
        give(run, task, runtime.device)
    if splits.val is not None and load_weights:
        known = [f"val/{name}" for name in task.measure(0, torch.device("cpu")).result().metrics]
        for key, metric in run.watched.items():
            if metric not in known:
                raise UserError(f"{key} is '{metric}', which is not measured{nearest(metric, known)}")
    # what losses hold the network to is read again, also when a checkpoint comes over it
    as_it_came = load_weights and (saved is None or bool(run.losses.of("start")))
    model = partial(
        build_model, run.model, run.data.normalize, wanted(task), mix(run.train.seed, WEIGHTS), load_weights=as_it_came
    )
    built = by_turns(runtime, model)
    if task.scale is not None and saved is None:
        foldable(built.network, built.head, task.scale, built.spec)
    stands = beside(task, built, run, runtime, saved)
    given = references(run, runtime, built, task, by_turns=partial(by_turns, runtime), load_weights=load_weights)
    fingerprints = given.fingerprints | stands
    if saved is not None:
        built.fresh = tuple(saved["fresh"])  # what the pretrained checkpoint lacked is known only when it is read
        if not accept_changes:
            unchanged(saved.get("references", {}), fingerprints)
    steps = total_steps(run.train, len(splits.train.items))
    samples = partial(samples_of, run, steps, len(splits.train.items))
    strategies.inject(run.strategy, built.network, built.head, built.fresh, mix(run.train.seed, ADAPTERS))
    groups = strategies.apply(run.strategy, built.network, built.head, built.fresh, samples)
    network = built.network.to(runtime.device)
    average: Average | FreeAverage | None = Average(network, run.train.ema) if run.train.ema is not None else None
    objective: Objective | None = None
    extra: list[ParamGroup] = []
    if not run.losses.plain or len(task.outputs) > 1:
        seed = mix(run.train.seed, PROJECTIONS)
        objective = build_objective(run, runtime, built, task, given, groups, seed, samples)
        extra = learnt_by(objective, getattr(run.losses.balance, "rate", 1.0))
    optimizer = build_optimizer(run.optimizer, [*groups, *extra], gradients_apart(objective))
    if isinstance(run.optimizer, ScheduleFree):
        average = FreeAverage(network, optimizer)
    summary = strategies.summary(network)
    strategies.begin(groups, saved["samples"] if saved is not None else 0)
    features, choice = frozen(run, runtime, built, groups, steps, len(splits.train.items))
    called = network if features is None or features.tail is None else features.tail
    wrapped = called if objective is None or not extra else Learner(called, objective)
    phase = Phase("model", network, runtime.wrap(wrapped), optimizer, objective or Plain(task))
    if objective is not None:
        assert objective.balance is not None
        phase.columns, phase.settle = objective.columns, objective.balance.settle
    if any(group.start for group in groups):
        phase.stage = partial(_stage, runtime, phase, groups, wrapped)
    return Parts(
        run, runtime, splits, built, task, phase, called, average, steps, BadCount(run.data.max_bad), summary, objective,
        fingerprints, features, groups, choice,
    )  # fmt: skip


def frozen(
    run: Run, runtime: Runtime, built: Built, groups: Sequence[ParamGroup], steps: int, samples: int
) -> tuple[Features | None, Choice]:  # fmt: skip
    """What is kept of the first part that never learns; none where nothing is. Raises UserError where it is asked for in vain."""
    choice = chosen(run, built, groups, steps, samples, runtime.autocast, runtime.device)
    if len(set(runtime.everyone(str(choice)))) > 1:
        choice = Choice(None, "the ranks do not find the same place to cut the network at")
    granted(run, choice)
    log.info("features of the frozen first part: %s", choice)
    if choice.cut is None:
        return None, choice
    if isinstance(choice, LatentChoice):
        assert built.beside is not None
        assert built.beside.vae is not None
        return Latents(run, runtime, built.beside.vae, built.spec, choice), choice
    learning = [parameter for group in groups for _, parameter in group.parameters]
    return Features(run, runtime, built.network, learning, built.spec, choice), choice


def chosen(
    run: Run, built: Built, groups: Sequence[ParamGroup], steps: int, samples: int,
    autocast: Callable[[], AbstractContextManager[Any]], device: torch.device,
) -> Choice:  # fmt: skip
    """Whether and where features are kept."""
    seen = steps * run.train.global_batch
    if run.task.generates:
        return choose_latents(run, built.beside, built.spec, samples=samples, seen=seen)
    looking = run.losses.at_images
    return choose(
        run, built.network, [parameter for group in groups for _, parameter in group.parameters], built.spec,
        samples=samples, seen=seen, train_mode=strategies.train_mode, autocast=autocast, device=device,
        against=f"losses.add.{looking[0]} needs the images" if looking else "",
    )  # fmt: skip


def beside(task: Task, built: Built, run: Run, runtime: Runtime, saved: dict[str, Any] | None) -> dict[str, str]:
    """Give a task that generates what stands beside its network, on its device; the fingerprints of what never learns."""
    if not isinstance(task, Generates) or built.beside is None:
        return {}
    if saved is not None:  # the schedule that the run began with
        built.beside = replace(built.beside, schedule=saved["generator"]["schedule"])
    task.bind(built.beside, run.train.seed)
    vae = built.beside.vae
    if vae is None:
        return {}
    by_turns(runtime, lambda: vae.to(runtime.device))
    return {"vae": fingerprint(vae.network)}


def by_turns(runtime: Runtime, make: Callable[[], Made]) -> Made:
    """Make something that may be downloaded: one rank downloads, the others find it in the cache."""
    made = make() if runtime.main else None
    runtime.barrier()
    return make() if made is None else made


def samples_of(run: Run, steps: int, epoch_samples: int, amount: Amount | float) -> int:
    """An amount of training, or a share of this one, in samples."""
    batch = run.train.global_batch
    if isinstance(amount, Amount):
        return amount.samples(epoch_samples=epoch_samples, step_samples=batch)
    return round(amount * steps * batch)


def _stage(
    runtime: Runtime, phase: Phase, groups: Sequence[ParamGroup], wrapped: nn.Module, samples: int
) -> nn.Module | None:  # fmt: skip
    """What learns from here on: the module, put around the network anew, when that is not what it was; else none."""
    if not strategies.begin(groups, samples):
        return None
    return runtime.rewrap(phase.module, wrapped)


def tensors(parts: Parts) -> dict[str, dict[str, torch.Tensor]]:
    """What a checkpoint holds, by file: the network, its average, and the optimizer's state by parameter name."""
    phase = parts.phase
    files: dict[str, dict[str, torch.Tensor]] = {f"{phase.name}.safetensors": dict(phase.network.state_dict())}
    files[f"{phase.name}-optimizer.safetensors"] = packed(parts)[0]
    if parts.average is not None:
        files[f"{phase.name}-average.safetensors"] = parts.average.state
    if parts.objective is not None and (held := parts.objective.state_dict()):
        files[f"{phase.name}-objective.safetensors"] = held
    return files


def packed(parts: Parts) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of the optimizer by parameter name: tensors, and JSON."""
    named = named_parameters(parts.phase.network, parts.objective)
    return pack(parts.phase.optimizer, {parameter: name for name, parameter in named.items()})


def generator_state(parts: Parts) -> dict[str, Any]:
    """What whoever goes on with a generator must know of it."""
    task, beside = parts.task, parts.built.beside
    if not isinstance(task, Generates) or beside is None:
        return {}
    asked = task.generator
    return {
        "classes": list(asked.classes), "dropped": asked.dropped, "channels": beside.channels, "size": beside.size,
        "schedule": dict(task.schedule()), "vae": None if beside.vae is None else beside.vae.source,
    }  # fmt: skip


def restore(parts: Parts, files: dict[str, dict[str, torch.Tensor]], extra: dict[str, Any]) -> None:
    """Put a checkpoint's tensors back: the inverse of `tensors`.

    With settings that were changed since (`--accept-changes`), an average goes on for what it held and begins with the weights
    for the rest, other losses begin anew, and another kind of optimizer begins without a state.
    """
    phase = parts.phase
    fill(phase.network, files[f"{phase.name}.safetensors"])
    if parts.average is not None:
        parts.average.restore(files.get(f"{phase.name}-average.safetensors", {}))
    if parts.objective is not None:
        _restore_losses(parts.objective, files.get(f"{phase.name}-objective.safetensors", {}))
    saved = files[f"{phase.name}-optimizer.safetensors"]
    kind = parts.run.optimizer_identity
    if extra.get("optimizer", kind) != kind:
        log.warning("the optimizer was %s and is %s now: it begins without a state", extra["optimizer"], kind)
        saved = {}
    named = named_parameters(phase.network, parts.objective)
    unpack(phase.optimizer, named, saved, extra.get("optimizer_state", {}) if saved else {})
    if parts.runtime.scaler is not None and "scaler" in extra:
        parts.runtime.scaler.load_state_dict(extra["scaler"])


def _restore_losses(objective: Objective, held: dict[str, torch.Tensor]) -> None:
    try:
        fill(objective, held)
    except RefusedError as error:  # the settings are the same, or the change of them was accepted
        log.warning("what the losses learnt does not fit the run file any more and begins anew: %s", error)
