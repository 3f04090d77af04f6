"""How much memory a training step will take, worked out from the run itself: network, optimizer and losses, without values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from trainer import strategies
from trainer.build import build
from trainer.config import Run
from trainer.config.arithmetic import micro_batches
from trainer.config.compute import fusable, not_compiled
from trainer.config.footprint import Footprint
from trainer.config.parallel import kind_of
from trainer.data import Batch
from trainer.data.pairs import loaded
from trainer.features.choose import Kept
from trainer.features.fill import UNIT
from trainer.kept_by_cuda import LikeCuda
from trainer.ledger import Ledger, without_values
from trainer.optim import Average
from trainer.parts import Parts
from trainer.runtime import Engine, Runtime
from trainer.runtime.computing import Computing
from trainer.runtime.engine import Make, Whole, divisible, named
from trainer.spec import ParamGroup
from trainer.strategies.blocks_of import blocks_of
from trainer.tasks.base import Generates, Translates
from trainer.tasks.diffusion import Diffusion
from trainer.tasks.opposing import Duels


class NotForetoldError(Exception):
    """Something in the run cannot be followed without values, in words."""


class Alone(Runtime):
    """The first of so many ranks, that meets nobody, on the CPU, where a run is put together that will not be trained.

    What the kind of sharing refuses is refused here as well. fp16 takes what bf16 takes, which a CPU can follow; nothing is
    compiled.
    """

    def __init__(self, run: Run, world: int) -> None:
        self.rank, self.world, self.device = 0, 1, torch.device("cpu")
        self.parallel, self.kind = run.parallel, kind_of(run.parallel, world)
        if run.parallel.threads:
            torch.set_num_threads(run.parallel.threads)  # it decides which convolution is taken
        self._host_group = self.savers = None
        precision = "fp32" if run.train.precision == "fp32" else "bf16"
        followed = run.train.model_copy(update={"precision": precision, "compile": "none", "tf32": "auto", "fused": "auto"})
        self.computing = Computing(followed, run.parallel, self.kind, self.device, self.everyone, None)

    def engine(
        self, module: nn.Module, network: nn.Module, groups: Sequence[ParamGroup], make: Make,
        units: Sequence[nn.Module] | None = (),
    ) -> Engine:  # fmt: skip
        """A rank that holds everything: what the kinds share out is worked out from that."""
        self.computing.around(module, network, units)
        divisible(self.kind, module)
        return Whole(self, module, network, groups, make)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network itself."""
        return network

    def close(self) -> None:
        """Nothing."""


def prepare(run: Run, world: int) -> Parts:
    """The run put together as a training on `world` ranks puts it together, but without weights. Raises UserError."""
    return build(run, Alone(run, world), None, load_weights=False)


class Forecast:
    """Follows steps of a run; `gpu`: as on a GPU, else as on a CPU.

    Of a run of several stages it is the one in which most learns.
    """

    def __init__(self, parts: Parts, *, gpu: bool) -> None:
        self._parts, self._gpu = parts, gpu
        self._values = without_values()
        self._stage = max((group.start for group in parts.groups), default=0)
        self._data = parts.dataset(parts.splits.train, train=True)
        self._one = self._data.fetch([(0, 0)])
        self._prepared(self._one)  # what that keeps for next time has to have values
        val = parts.splits.val
        self._held = [*self._data.held, *([] if val is None else parts.dataset(val, train=False).held)]
        if gpu and not (parts.run.train.fused is not False and fusable(parts.run)):
            for engine in self._engines():
                _at_once(engine.optimizer)

    def __call__(self, micro_batch: int, share: int) -> Footprint:
        """With micro-batches of at most so many samples, of a rank's `share` of a step. Raises NotForetoldError."""
        parts, run = self._parts, self._parts.run
        if strategies.begin(parts.engine.groups, self._stage):
            parts.engine.regroup()
        sizes = micro_batches(share, micro_batch)
        ledger = Ledger(self._values, gpu=self._gpu)
        engines = self._engines()
        learning = [p for engine in engines for p in _learning(engine)]
        ledger.watch(learning)
        like = LikeCuda(run.train.precision != "fp32") if self._gpu else nullcontext()
        for engine in engines:
            engine.optimizer.state.clear()
        try:
            with torch.random.fork_rng(devices=[]), ledger, like:
                self._enter(ledger)
                parts.train_mode()
                for _ in range(2):  # the first has no optimizer state yet
                    self._step(sizes)
                    for engine in engines:
                        ledger.enter("optimizer", _tensors(engine.optimizer.state))
                step, apart, optimizer = ledger.peak, ledger.apart, ledger.now["optimizer"]
                ledger.again()
                self._between(parts.evaluation_batch(micro_batch))
                evaluation = ledger.peak.bytes
                held = dict(ledger.now)
        except Exception as error:  # the network is the user's, and can be trained although it is not foretold
            said = (str(error).strip().splitlines() or [""])[0]
            raise NotForetoldError(f"{type(error).__name__}: {said}") from error
        finally:
            for engine in engines:
                engine.clear()
                engine.optimizer.state.clear()
        at_peak = {part: size for part, size in step.parts.items() if size}
        return Footprint(
            micro_batch=micro_batch, weights=held.get("weights", 0), buffers=held.get("buffers", 0),
            gradients=sum(p.nbytes for p in learning), optimizer=optimizer, average=held.get("average", 0),
            other=held.get("other", 0), peak=step.bytes, at_peak=at_peak, apart=apart.bytes, evaluation=evaluation,
            block=self._block(), stage=self._stage, lacks=self._lacks(),
        )  # fmt: skip

    def _lacks(self) -> str:
        """What is not followed, in words."""
        run = self._parts.run
        compiled = run.train.compile not in ("none", "auto") or (run.train.compile == "auto" and self._gpu)
        judges = getattr(run.task, "fidelity", None) is not None
        found = ["the network that judges images (task.fidelity)"] * judges
        found += ["what torch.compile's code keeps in its own order (train.compile)"] * (compiled and not_compiled(run) is None)
        return " and ".join(found)

    def _enter(self, ledger: Ledger) -> None:
        """What is there before the first step."""
        parts = self._parts
        objective = parts.objective
        for phase in parts.phases:
            ledger.enter("weights", phase.network.parameters())
            ledger.enter("buffers", phase.network.buffers())
        if isinstance(parts.average, Average):
            ledger.enter("average", parts.average.state.values())
        if objective is not None:
            ledger.enter("weights", objective.parameters())
            ledger.enter("buffers", objective.buffers())
            for reference in objective.references.values():
                ledger.enter("other", _of(reference.network))
        if not self._gpu:
            ledger.enter("other", self._held)
        beside = parts.built.beside
        still = [getattr(part, "network", None) for part in ((beside.vae, beside.text) if beside is not None else ())]
        if isinstance(parts.task, Translates | Diffusion):
            still += parts.task.perceives.values()
        for network in still:
            if isinstance(network, nn.Module):
                ledger.enter("other", _of(network))

    def _engines(self) -> list[Engine]:
        return [self._parts.engine, *(other.engine for other in self._parts.others)]

    def _step(self, sizes: Sequence[int]) -> None:
        """What `trainer.loop.Step.step` does, in its order; of many micro-batches the first two, after which nothing is new."""
        parts, clip = self._parts, self._parts.run.train.clip
        waiting = [] if self._gpu else [self._raw(size) for size in sizes]  # on a CPU they lie in the same memory
        for phase, engine in zip(parts.phases, self._engines(), strict=True):
            for index, size in enumerate(sizes[:2]):
                batch = self._prepared(self._raw(size) if self._gpu else waiting[index])
                sums = phase.loss(engine.module, batch).sum(dim=0)
                engine.backward(sums[0] if phase.columns else sums)
            norm = engine.norm()
            if phase.settle is not None:
                phase.settle(parts.run.train.global_batch, good=True)
            engine.step(norm, clip)
            engine.clear()
        if parts.average is not None:
            parts.average.update(1)

    @torch.no_grad()
    def _between(self, at_once: int) -> None:
        """An evaluation of so many at a time, the images that a generator makes, and a pass that computes features."""
        parts, run = self._parts, self._parts.run
        task, beside = parts.task, parts.built.beside
        called = parts.engine.called.eval()
        with parts.runtime.autocast():
            if parts.splits.val is not None and isinstance(task, Duels):
                task.run(called, self._prepared(self._raw(getattr(run.task, "samples").batch)))  # noqa: B009 (of every such task)
            elif parts.splits.val is not None:
                batch = self._prepared(self._raw(at_once, beside=False))
                if isinstance(task, Translates):
                    task.measured(called, batch)
                else:
                    task.logits(task.run(called, batch)).float()
                del batch
            if isinstance(task, Generates) and beside is not None and parts.splits.val is not None:
                asked, samples = task.plan(), getattr(run.task, "samples", None)
                count = samples.batch if samples is not None else 1
                noise = torch.empty(count * (1 if asked.guidance == 1 else 2), beside.channels, beside.size, beside.size)
                told = {"classes": torch.empty(len(noise), dtype=torch.int64)} if task.generator.classes else {}
                if beside.text is not None:
                    told = {name: torch.empty(len(noise), *shape) for name, shape in beside.text.shapes.items()}
                if beside.source:
                    told["source"] = torch.empty_like(noise)
                beside.call(parts.phase.network, noise, torch.empty(len(noise)), told)
                if beside.vae is not None:
                    beside.vae.decode(noise[:count])
            if parts.features is not None:
                size = parts.built.spec.image_size
                images = torch.empty(UNIT, parts.built.spec.in_channels, size, size)
                if parts.features.tail is not None:
                    parts.phase.network.eval()(images)
                elif beside is not None and beside.vae is not None:
                    beside.vae.encode(images)

    def _raw(self, count: int, *, beside: bool = True) -> Batch:
        """A micro-batch as the loader gives it; `beside`: with the samples of a prior, where the run has one."""

        def many(value: torch.Tensor) -> torch.Tensor:
            return torch.empty([count, *value.shape[1:]], dtype=value.dtype)

        one, kept = self._one, self._kept()
        images = many(one.images) if kept is None else torch.empty([count, *kept.shape], dtype=kept.given)
        targets, values = (None if given is None else many(given) for given in (one.targets, one.values))
        batch = replace(
            one, images=images, labels=many(one.labels), indices=many(one.indices), targets=targets, values=values, bad=[],
            epochs=many(one.epochs),
        )  # fmt: skip
        if getattr(self._parts.run.task, "prior", None) is None or not beside:
            return batch
        return replace(batch, prior=self._raw(count, beside=False))

    def _prepared(self, raw: Batch) -> Batch:
        parts = self._parts
        return raw.to(parts.runtime.device, loaded(parts.run, parts.built.spec) if self._kept() is None else None)

    def _kept(self) -> Kept | None:
        return None if self._parts.features is None else self._parts.choice.kept

    def _block(self) -> int:
        network = self._parts.phase.network
        sizes = {name: p.nbytes for name, p in network.named_parameters()}
        blocks = blocks_of(network, self._parts.built.head)
        return max((sum(sizes.get(name, 0) for name in block.parameters) for block in blocks), default=0)


def _learning(engine: Engine) -> list[nn.Parameter]:
    return [parameter for _, parameter in named(engine.groups) if parameter.requires_grad]


def _of(network: nn.Module) -> Iterator[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _tensors(state: Any) -> Iterable[torch.Tensor]:
    return [leaf for kept in state.values() for leaf in pytree.tree_leaves(dict(kept)) if isinstance(leaf, torch.Tensor)]


def _at_once(optimizer: torch.optim.Optimizer) -> None:
    """Have all parameters stepped together, as torch does by itself on a GPU without a kernel of its own for the optimizer: it
    takes room of their size."""
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None:
            group["foreach"] = True
