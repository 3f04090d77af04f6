"""From a run file, the counts of its samples and a machine to what will happen: pure arithmetic, nothing is started."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from launcher.machine import Machine
from trainer.config import Run, UserError
from trainer.config.arithmetic import micro_batches, occasions, rank_shares, total_steps
from trainer.config.compute import words
from trainer.config.targets import Facts

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Counts:
    """Samples for training and for validation (none without validation data), and what the former say."""

    train: int
    val: int | None
    facts: Facts
    sampled: dict[str, float] | None = None  # how many samples of each class an epoch has, where they do not come once each


@dataclass(frozen=True)
class Plan:
    """What a run will do. All amounts are samples unless the name says steps; `shares[r]` is what rank r takes of a step.

    `accumulation` counts the forward passes of a step (on the rank with most), which are more if `tries` finds that fewer samples
    fit; `tail` the samples that the last, full batch
    takes from the epoch after the last.
    """

    name: str
    device: Device
    computes: str
    nodes: int
    world_size: int
    threads: int
    model: str
    weights: str
    learns: str
    task: str
    train_samples: int
    targets: list[dict[str, Any]]
    sampling: str
    sampled: dict[str, float] | None
    held_back: str | None
    mix: str | None
    losses: str | None
    prior: str | None
    val_samples: int | None
    global_batch: int
    shares: tuple[int, ...]
    micro_batch: int
    accumulation: int
    tries: bool
    steps: int
    epochs: float
    samples: int
    tail: int
    warmup_samples: int
    evaluate_every: str | None
    evaluations: int | None
    checkpoint_every: str
    checkpoints: int | None
    keep: int
    best: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(run: Run, counts: Counts, machine: Machine) -> Plan:
    """Work a run out for a machine; raises UserError where the data is not the task's or the numbers cannot be met."""
    run.fits(counts.facts)
    device, local = processes(run, machine)
    nodes = run.resources.nodes
    world_size = nodes * local
    train = run.train
    if train.precision == "fp16" and device == "cpu" and run.parallel.device != "cpu":
        raise UserError(
            "train.precision is fp16, which wants a GPU; write train.precision=bf16 (or fp32), or try it, slowly, with "
            "parallel.device=cpu"
        )
    n = counts.train
    shares = rank_shares(train.global_batch, world_size)
    passes = micro_batches(shares[0], train.micro_batch)
    steps = total_steps(train, n)
    samples = steps * train.global_batch
    asked = samples if train.steps is not None else round(train.epochs * n)

    def times(every: Any) -> int | None:
        return occasions(every, steps=steps, global_batch=train.global_batch, epoch_samples=n)

    evaluations = times(run.evaluate.every)
    if evaluations is not None and run.evaluate.at_start:
        evaluations += 1
    warmup = run.schedule.warmup_samples(total=samples, epoch_samples=n, step_samples=train.global_batch)
    return Plan(
        name=run.name, device=device, computes=words(run, device), nodes=nodes, world_size=world_size,
        threads=run.parallel.threads or max(1, machine.cores // local), model=run.model.source,
        weights=run.model.weights, learns=run.strategy.kind,
        task=run.task.kind, train_samples=n, targets=counts.facts.as_json(), sampling=run.data.sampling.kind,
        sampled=counts.sampled,
        held_back=run.data.val if (run.data.val or "").startswith(("split:", "fold:")) else None, mix=_mix(run),
        losses=_losses(run), prior=_prior(run),
        val_samples=counts.val,
        global_batch=train.global_batch, shares=shares, micro_batch=passes[0], accumulation=len(passes),
        tries=train.micro_batch == "auto",
        steps=steps, epochs=samples / n, samples=samples, tail=max(0, samples - asked), warmup_samples=warmup,
        evaluate_every=run.evaluate.every.text if counts.val is not None else None,
        evaluations=evaluations if counts.val is not None else 0,
        checkpoint_every=run.checkpoint.every.text, checkpoints=times(run.checkpoint.every), keep=run.checkpoint.keep,
        best=run.checkpoint.best if counts.val is not None else None,
    )  # fmt: skip


def _mix(run: Run) -> str | None:
    mix = run.data.mix
    if mix is None:
        return None
    kinds = [f"{name} {alpha:g}" for name, alpha in (("mixup", mix.mixup), ("cutmix", mix.cutmix)) if alpha]
    return f"{' or '.join(kinds)}, {mix.probability:.0%} of the images; each of them is read with a second one"


def _losses(run: Run) -> str | None:
    """The losses beside the task's own, with their weights, and how they are balanced."""
    losses = run.losses
    weights = run.weights
    if losses.plain and not weights:
        return None

    def weighed(name: str, told: str) -> str:
        factor = weights.get(name, 1.0)
        return f"{told} x {factor:g}" if factor != 1 else told

    named = {name: f"{name} ({loss.kind})" for name, loss in losses.add.items()}
    own = [weighed(name, name) for name in weights if name not in named and name != "task"]
    shown = [*(own or [weighed("task", "the task's")]), *(weighed(name, told) for name, told in named.items())]
    taught = f"; taught by {losses.teacher.source}" if losses.teacher is not None else ""
    balance = f"; balanced by {losses.balance.kind}" if losses.balance.kind != "fixed" else ""
    return " + ".join(shown) + taught + balance


def _prior(run: Run) -> str | None:
    """What a generator knew before, of which a sample comes beside each of the data."""
    prior = getattr(run.task, "prior", None)
    if prior is None:
        return None
    words = f" ({', '.join(prior.words)})" if prior.words else ""
    what = f"images of {prior.data}" if prior.data is not None else f"{prior.count:,} images that the weights draw first"
    return f"{what}{words}; one of them beside each sample, in the same pass"


def processes(run: Run, machine: Machine) -> tuple[Device, int]:
    """The device and the ranks a node. Raises UserError when the machine does not have what is asked for."""
    wanted, asked, nodes = run.parallel.device, run.parallel.processes, run.resources.nodes
    gpus = machine.gpus
    if nodes > 1:
        gpus = run.resources.gpus_per_node or gpus  # the nodes of a cluster need not be like this machine
    if wanted == "cuda" and not gpus:
        raise UserError("parallel.device is cuda and no GPU is visible here; write parallel.device=cpu, or auto")
    device: Device = "cuda" if wanted != "cpu" and gpus else "cpu"
    if asked == "auto":
        return device, gpus if device == "cuda" else 1
    if device == "cuda" and asked > gpus:
        raise UserError(
            f"parallel.processes is {asked} and {gpus} GPU{'s are' if gpus > 1 else ' is'} visible; "
            f"write parallel.processes={gpus}, or parallel.device=cpu"
        )
    return device, asked
