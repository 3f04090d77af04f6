"""Puts a run together: data, network, strategy, optimizer and task become a Job for the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from trainer import aspects, restored, rivals, strategies  # noqa: F401 (restored: what a `run:` source is read with)
from trainer.config import Run, UserError, nearest
from trainer.config.amounts import Amount
from trainer.config.arithmetic import micro_batches, rank_shares, total_steps
from trainer.config.optimizers import ScheduleFree
from trainer.config.parallel import CUTS_WEIGHTS
from trainer.config.sources import open_splits
from trainer.data.dataset import BadCount
from trainer.data.order import mix
from trainer.export.scale import foldable
from trainer.features.choose import Choice, choose, granted
from trainer.features.kept import Features
from trainer.features.latents import Latents, choose_latents
from trainer.features.pictures import Decoded
from trainer.features.pictures import granted as granted_pictures
from trainer.judges import give
from trainer.learning import build_objective, gradients_apart, learnt_by, references, unchanged
from trainer.losses.objective import Learner, Objective, Plain
from trainer.models import Built, build_model
from trainer.models.gan import without_weights
from trainer.optim import Average, FreeAverage, build_optimizer
from trainer.parts import Parts
from trainer.references import block_names, fingerprint
from trainer.runtime import Engine, Runtime
from trainer.spec import ParamGroup
from trainer.tasks import build_task
from trainer.tasks.base import Generates, Phase, Task, Translates, loss_names, wanted
from trainer.tasks.opposing import Duels

log = logging.getLogger("graft")
Made = TypeVar("Made")
WEIGHTS, ADAPTERS, PROJECTIONS = 2, 3, 4  # keep the streams drawn from one seed apart


def build(
    run: Run, runtime: Runtime, saved: dict[str, Any] | None, *, accept_changes: bool = False, load_weights: bool = True
) -> Parts:
    """Put a run together; `saved` is the state of its own checkpoint, which will be loaded over the pretrained weights.

    Without `load_weights` nothing is read or downloaded but an autoencoder: the shapes are right, the values are not, and of
    texts there are shapes alone.

    Raises UserError for everything in the run file that does not fit the data, the weights or the network, RefusedError for a
    teacher that changed since (unless `accept_changes`).
    """
    shares = passes_alike(run, runtime)  # refuses more ranks than samples before anything is downloaded
    splits = open_splits(run.data, run.train.seed, looks_at=run.task.looks_at)
    granted_pictures(run, {"train": splits.train, "val": splits.val})
    task = build_task(run.task, splits.train.facts)
    if splits.val is not None:
        run.task.measurable(splits.val.facts)
    give(run, task, runtime.device, load_weights=load_weights)
    if splits.val is not None and load_weights:
        known = [f"val/{name}" for name in task.measure(0, torch.device("cpu")).result().metrics]
        for key, metric in run.watched.items():
            if metric not in known:
                raise UserError(f"{key} is '{metric}', which is not measured{nearest(metric, known)}")
    # what losses hold the network to is read again, also when a checkpoint comes over it
    as_it_came = load_weights and (saved is None or bool(run.losses.of("start")))
    source = run.model if as_it_came or saved is None or not isinstance(task, Duels) else without_weights(run.model, saved)
    model = partial(build_model, source, run.data.normalize, wanted(task), mix(run.train.seed, WEIGHTS), load_weights=as_it_came)
    built = by_turns(runtime, model)
    aspects.fitting(run, built)
    if task.scale is not None and saved is None:
        foldable(built.network, built.head, task.scale, built.spec)
    if isinstance(task, Translates | Duels):
        task.fit(built.spec, built.network, run.train.seed)
    stands = beside(task, built, run, runtime, saved, load_weights=load_weights)
    given = references(run, runtime, built, task, by_turns=partial(by_turns, runtime), load_weights=load_weights)
    fingerprints = given.fingerprints | stands
    if saved is not None:
        built.fresh = tuple(saved["fresh"])  # what the pretrained checkpoint lacked is known only when it is read
        if not accept_changes:
            unchanged(saved.get("references", {}), fingerprints)
    steps = total_steps(run.train, len(splits.train.items))
    samples = partial(samples_of, run, steps, len(splits.train.items))
    strategies.inject(run.strategy, built.network, built.head, built.fresh, mix(run.train.seed, ADAPTERS))
    restless = strategies.restless(run.strategy, built.network)
    if restless is not None and runtime.cuts_weights:
        raise UserError(
            f"parallel.kind: {runtime.kind} holds pieces of the weights of '{restless}', which {run.strategy.kind} changes in "
            "each forward pass; write parallel.kind: zero2, or name other layers as strategy.targets"
        )
    groups = strategies.apply(run.strategy, built.network, built.head, built.fresh, samples)
    network = built.network.to(runtime.home)
    objective: Objective | None = None
    extra: list[ParamGroup] = []
    if not run.losses.plain or len(loss_names(task)) > 1:
        seed = mix(run.train.seed, PROJECTIONS)
        objective = build_objective(run, runtime, built, task, given, groups, seed, samples)
        extra = learnt_by(objective, getattr(run.losses.balance, "rate", 1.0))
    summary = strategies.summary(network)
    learns = sorted([*groups, *extra], key=lambda group: group.start)
    strategies.begin(learns, saved["samples"] if saved is not None else 0)
    features, choice = frozen(run, runtime, built, groups, steps, len(splits.train.items))
    called = network if features is None or features.tail is None else features.tail
    if called is not network and run.train.compile == "whole":
        raise UserError(
            "train.compile: whole compiles a network from its images on, and features of its frozen first part are kept; write "
            "blocks, or data.cache: none"
        )
    wrapped = called if objective is None or not extra else Learner(called, objective)
    apart = gradients_apart(objective)
    engine = runtime.engine(
        wrapped, called, learns, partial(build_optimizer, run.optimizer, apart=apart, fused=runtime.computing.fused),
        units(network, built.head, features),
    )  # fmt: skip
    average: Average | FreeAverage | None = None
    if isinstance(run.optimizer, ScheduleFree):
        average = FreeAverage(network, engine.optimizer)
    elif run.train.ema is not None:
        average = Average(engine.moving(network), buffers(network), run.train.ema, engine.publish)
    phase = Phase("model", network, engine, objective or Plain(task))
    if objective is not None:
        assert objective.balance is not None
        phase.columns, phase.settle = objective.columns, objective.balance.settle
    if any(group.start for group in groups):
        phase.stage = partial(_stage, engine, network, average if isinstance(average, Average) else None)
    return Parts(
        run, runtime, splits, built, task, phase, engine, average, steps, BadCount(run.data.max_bad), summary, objective,
        fingerprints, features, rivals.rivals(run, runtime, task, built),
        Decoded(run, runtime, built.spec) if run.data.cache.kind == "decoded" else None, groups, choice,
        micro_batches(shares[0], run.train.micro_batch)[0],
        buckets=aspects.bucketed(run, runtime, built, splits) if load_weights else None,
    )  # fmt: skip


def passes_alike(run: Run, runtime: Runtime) -> tuple[int, ...]:
    """The ranks' shares of a step. Raises UserError where they cannot make as many forward passes each, and would wait for one
    another in vain."""
    batch, micro = run.train.global_batch, run.train.micro_batch
    shares = rank_shares(batch, runtime.world)
    passes = len(micro_batches(shares[0], micro))
    if runtime.kind != "ddp" and passes > shares[-1] and micro != "auto":
        raise UserError(
            f"train.micro_batch is {micro}: of {batch} samples rank 0 takes {shares[0]} in {passes} passes, and the last rank "
            f"has {shares[-1]} samples; under parallel.kind: {runtime.kind} all ranks make as many passes. Write "
            f"train.global_batch={runtime.world * shares[0]}, or train.micro_batch={micro + 1}"
        )
    return shares


def units(network: nn.Module, head: Sequence[str], features: Features | None = None) -> list[nn.Module]:
    """Parts of a network that are called one after the other, without those that kept features stand in for."""
    cut = features.tail.cut if features is not None and features.tail is not None else None
    passed = () if cut is None else (*cut.before, *cut.around)
    found = [network.get_submodule(name) for name in block_names(network, head) if name not in passed]
    return [part for part in found if not isinstance(part, nn.ModuleList | nn.ModuleDict)]


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Those that are saved."""
    return {name: value for name, value in network.state_dict(keep_vars=True).items() if not isinstance(value, nn.Parameter)}


def frozen(
    run: Run, runtime: Runtime, built: Built, groups: Sequence[ParamGroup], steps: int, samples: int
) -> tuple[Features | None, Choice]:  # fmt: skip
    """What is kept of the first part that never learns; none where nothing is. Raises UserError where it is asked for in vain."""
    choice = chosen(run, built, groups, steps, samples, runtime.autocast, runtime.device, runtime.kind)
    if len(set(runtime.everyone(str(choice)))) > 1:
        choice = Choice(None, "the ranks do not find the same place to cut the network at")
    granted(run, choice)
    log.info("features of the frozen first part: %s", choice)
    if choice.kept is None:
        return None, choice
    if built.beside is not None and built.beside.vae is not None:
        return Latents(run, runtime, built.beside.vae, built.spec, choice.kept), choice
    learning = [parameter for group in groups for _, parameter in group.parameters]
    return Features(run, runtime, built.network, learning, built.spec, choice.kept), choice


def chosen(
    run: Run, built: Built, groups: Sequence[ParamGroup], steps: int, samples: int,
    autocast: Callable[[], AbstractContextManager[Any]], device: torch.device, kind: str,
) -> Choice:  # fmt: skip
    """Whether and where features are kept under a kind of `parallel`."""
    seen = steps * run.train.global_batch
    if run.task.duels:
        return Choice(None, "a generator looks at no image")
    if run.data.buckets is not None:
        return Choice(None, "images of buckets have several sizes")
    if run.task.generates:
        return choose_latents(run, built.beside, built.spec, samples=samples, seen=seen)
    if run.task.translates or run.task.reconstructs:
        return Choice(None, "a decoder looks at maps from all over the network")
    looking = run.losses.at_images
    against = f"losses.add.{looking[0]} needs the images" if looking else ""
    if kind in CUTS_WEIGHTS:
        against = f"parallel.kind: {kind} cuts the frozen part as well, which zero2 leaves whole"
    return choose(
        run, built.network, [parameter for group in groups for _, parameter in group.parameters], built.spec,
        samples=samples, seen=seen, train_mode=strategies.train_mode, autocast=autocast, device=device,
        against=against,
    )  # fmt: skip


def beside(
    task: Task, built: Built, run: Run, runtime: Runtime, saved: dict[str, Any] | None, *, load_weights: bool = True
) -> dict[str, str]:  # fmt: skip
    """Give a task that generates what stands beside its network, on its device; the fingerprints of what never learns."""
    if isinstance(task, Translates):
        return {name: fingerprint(network) for name, network in task.perceives.items() if name in task.loss_names}
    if not isinstance(task, Generates) or built.beside is None:
        return {}
    if saved is not None:  # the schedule that the run began with
        built.beside = replace(built.beside, schedule=saved["generator"]["schedule"])
    task.bind(built.beside, run.train.seed)
    frozen = {"vae": built.beside.vae, "text": built.beside.text if load_weights else None}
    found: dict[str, str] = {}
    for name, part in frozen.items():
        if part is not None:
            by_turns(runtime, partial(part.to, runtime.device))
            found[name] = fingerprint(part.network)
    if load_weights:
        task.ready(runtime.device)
    else:
        task.unread()
    return found


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


def _stage(engine: Engine, network: nn.Module, average: Average | None, samples: int) -> bool:
    """Let begin what begins to learn at these samples; whether that changed anything."""
    if not strategies.begin(engine.groups, samples):
        return False
    engine.regroup()
    if average is not None:
        average.follow(engine.moving(network), buffers(network))
    return True
