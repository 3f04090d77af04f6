"""Whether a micro-batch fits the memory of this rank, found by trying it before the first step; afterwards nothing has changed.

What a step takes at most is what its second one takes: only then is the optimizer's state there. So two steps are made, of up to
two micro-batches each (with the third nothing is new), of one sample of the data as often as is needed.

- The network is called without what joins it to the other ranks: none waits for one that ran out.
- The step between the two is taken by an optimizer made like the run's own, whose state goes with it. The run's own never moves.
- Weights that learn wait on the host meanwhile, with the buffers. They, the modules' attributes and all random states are put
  back, so that the training that follows is to the bit the one that no trial came before.
"""

from __future__ import annotations

import gc
import random
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from trainer import strategies
from trainer.config.arithmetic import micro_batches, rank_shares
from trainer.data import Batch
from trainer.parts import Parts
from trainer.runtime.engine import Whole
from trainer.shortage import short, told


def limited(device: torch.device) -> bool:
    """Whether a lack of memory is an error here: on a GPU, and where a process may have so much (`ulimit -v`). Elsewhere Linux
    promises what it has not, and kills."""
    return device.type == "cuda" or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def hindrance(parts: Parts) -> str | None:
    """Why nothing can be tried before the first step of this run; none where it can."""
    run, network = parts.run, parts.phase.network
    if not isinstance(parts.engine, Whole):
        return f"under parallel.kind: {parts.runtime.kind} the ranks meet in every pass"
    if parts.others:
        return "two networks learn from what the other made"
    if parts.runtime.world > 1 and any(isinstance(part, nn.SyncBatchNorm) for part in network.modules()):
        return "the ranks meet in SyncBatchNorm"
    if strategies.restless(run.strategy, network) is not None:
        return f"strategy.kind: {run.strategy.kind} changes frozen weights in each forward pass"
    if run.losses.balance.kind == "adatask":
        return "losses.balance: adatask steps by gradients that the ranks have summed"
    return None


def lacks(parts: Parts, size: int) -> str:
    """What ran out on this rank with micro-batches of `size` samples; empty where they fit."""
    engine, runtime = parts.engine, parts.runtime
    assert isinstance(engine, Whole)
    shares = rank_shares(parts.run.train.global_batch, runtime.world)
    sizes = micro_batches(shares[runtime.rank], size, passes=len(micro_batches(shares[0], size)))
    problem = ""
    roots = [engine.alone, parts.phase.network, *([parts.objective] if parts.objective is not None else [])]
    with _untouched(roots, runtime.device):
        parts.train_mode()
        try:
            _steps(parts, engine, sizes)
        except Exception as error:
            if not short(error):
                raise
            problem = told(error)
        engine.clear()
    if problem:
        if parts.run.train.compile != "none":
            torch._dynamo.reset()  # code for a size that will not come
        gc.collect()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
    return problem


def _steps(parts: Parts, engine: Whole, sizes: tuple[int, ...]) -> None:
    one = parts.samples().fetch([(0, 0)])
    raws = [one.each(partial(torch.repeat_interleave, repeats=count, dim=0)) for count in sizes[:2]]
    _pass(parts, engine, raws)
    if not engine.optimizer.state:  # else it was loaded, and is there
        learning = [p for p in engine.alone.parameters() if p.grad is not None]
        torch.nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
        spare = engine.spare()
        spare.step()
    engine.clear()
    with ExitStack() as stack:
        if parts.runtime.world > 1 and len(sizes) == 1:
            # gradients go straight into the buckets in which they will be averaged, which are there already
            for parameter in engine.alone.parameters():
                if parameter.requires_grad:
                    hook = parameter.register_post_accumulate_grad_hook(_dropped)  # type: ignore[no-untyped-call]
                    stack.callback(hook.remove)
        _pass(parts, engine, raws)


def _dropped(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _pass(parts: Parts, engine: Whole, raws: list[Batch]) -> None:
    """What `trainer.loop.Step.step` does up to the step, alone."""
    for raw in raws:
        batch = parts.prepare(raw)
        sums = parts.phase.loss(engine.alone, batch).sum(dim=0)
        engine.backward(sums[0] if parts.phase.columns else sums)


@contextmanager
def _untouched(roots: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Afterwards modules have the values, the modes and the attributes that they had, and nothing was drawn."""
    modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
    attributes = [dict(vars(module)) for module in modules]
    buffers = [(module._buffers, dict(module._buffers)) for module in modules]
    values = [value for root in roots for value in (*root.parameters(), *root.buffers())]
    moving = [value for value in dict.fromkeys(values) if value.requires_grad or not isinstance(value, nn.Parameter)]
    kept = [value.detach().to("cpu", copy=True) for value in moving]
    drawn = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, before in zip(modules, attributes, strict=True):
                vars(module).clear()
                vars(module).update(before)
            for held, named in buffers:
                held.clear()
                held.update(named)
            with torch.no_grad():
                for value, was in zip(moving, kept, strict=True):
                    value.copy_(was)
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])
