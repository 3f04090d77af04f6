"""Processes, devices and precision: the one place that knows Accelerate and torch.distributed."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.config import RefusedError, UserError
from trainer.config.run import Parallel, Train

LONG_STEP = 0.2  # seconds
_WISHES = 4  # bits
_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
PACE_STEPS, PACE_LEAST, PACE_WARM_UP = 20, 5, 3  # steps in the mean, at least so many, without the first ones


class Runtime:
    """This rank, its device and what it does together with the others.

    Raises RefusedError when the ranks that were found are not those that were planned, UserError for a precision that the device
    does not have.
    """

    def __init__(self, parallel: Parallel, train: Train, *, planned: int | None) -> None:
        found = int(os.environ.get("WORLD_SIZE", "1"))
        planned = planned or (parallel.processes if isinstance(parallel.processes, int) else None)
        if planned is not None and planned != found:
            raise RefusedError(
                f"the run was planned for {planned} rank(s) and {found} started; with accelerate launch on CPUs use "
                f"--multi_gpu --num_processes {planned} (--cpu starts one process whatever is asked for)"
            )
        cpu = parallel.device == "cpu" or not torch.cuda.is_available()
        if cpu and parallel.device == "cuda":
            raise UserError("parallel.device is cuda and no GPU is visible; write auto or cpu")
        if cpu and train.precision == "fp16":
            raise UserError("train.precision is fp16, which needs a GPU; on a CPU write bf16 or fp32")
        if cpu:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            local = int(os.environ.get("LOCAL_WORLD_SIZE", found))
            torch.set_num_threads(parallel.threads or max(1, cores // local))
        # The watch names the rank that hangs after `timeout`, while a checkpoint is written after twice that: these come later.
        timeout = timedelta(seconds=2 * parallel.timeout + 30)
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

        # One bucket view saves a copy of the gradients; buffers follow rank 0 at each forward, so its state is the run's.
        self._accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=_PRECISIONS[train.precision],
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timeout),
            ],
        )
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.precision = train.precision
        self.scaler: torch.amp.GradScaler | None = self._accelerator.scaler
        if self.world != found:
            raise RefusedError(f"Accelerate found {self.world} rank(s) where the environment says {found}")
        # Small messages between hosts must not wait for the GPU: they have a group of their own.
        self._host_group: Any = dist.new_group(backend="gloo", timeout=timeout) if self.world > 1 else None
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network for several ranks and mixed precision, on the device."""
        wrapped: nn.Module = self._accelerator.prepare_model(network)
        if self.world > 1 and self.device.type == "cpu":
            # DDP lays its buckets out anew after its first step, and the layout decides in which order three ranks or more are
            # added up: without this a resumed run would round differently. (On GPUs it would hold every message back to the end
            # of the backward pass.)
            fix = getattr(getattr(wrapped, "reducer", None), "_push_all_rebuilt_params", None)
            if fix is not None:  # not a promised interface; where it is gone, three ranks resume to rounding
                fix()
        return wrapped

    def rewrap(self, module: nn.Module, network: nn.Module) -> nn.Module:
        """`wrap` again, since other parameters of the network learn now; `module` is what it was wrapped as."""
        if self.world == 1:
            return module
        models = self._accelerator._models  # its own list would keep the old wrapper, and the wrapper's hooks, alive
        models[:] = [other for other in models if other is not module]
        self._accelerator.unwrap_model(module, keep_fp32_wrapper=False)  # takes mixed precision off the network again
        return self.wrap(network)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for calls outside the wrapped network."""
        context: AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def syncing(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Average gradients over the ranks only with the last micro-batch of a step."""
        if last or self.world == 1:
            return nullcontext()
        context: AbstractContextManager[Any] = module.no_sync()  # type: ignore[operator]
        return context

    def reseed(self, seed: int) -> None:
        """Seed what dropout draws from."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def sum_host(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a tensor, in place for CPU tensors; the same bits on every rank."""
        if self.world > 1:
            host = values.cpu()
            dist.all_reduce(host, group=self._host_group)
            values.copy_(host)
        return values

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a tensor on the device, which may be large; the same bits on every rank."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._host_group)
        return box[0]

    def everyone(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on every rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._host_group)
        return found

    def share_buffers(self, network: nn.Module) -> None:
        """Give every rank the buffers of rank 0 (BatchNorm's statistics differ between ranks while training)."""
        if self.world > 1:
            for buffer in network.buffers():
                host = buffer.detach().cpu()
                dist.broadcast(host, src=0, group=self._host_group)
                buffer.copy_(host)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(group=self._host_group)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def pace(self, module: nn.Module, network: nn.Module) -> Pace:
        """Measures this rank's own time a step; `module` is the wrapped `network`."""
        return Pace(self.device, module, network)

    def agreement(self) -> Agreement:
        return Agreement(self._host_group)


class Pace:
    """This rank's own seconds a step, up to where it meets the others: the wait for data, and the forward pass up to the last
    backward pass, in which the gradients are averaged (with several micro-batches also the backward passes before it).

    Between the wrapper and the network the buffers of rank 0 come in: that time is another rank's, and is left out. On a GPU the
    work is timed by events, which are read when they are done: nothing waits for them.
    """

    def __init__(self, device: torch.device, module: nn.Module, network: nn.Module) -> None:
        self._cuda = device.type == "cuda"
        self._times: deque[float] = deque(maxlen=PACE_STEPS)
        self._running: deque[tuple[float, Any, Any]] = deque(maxlen=PACE_STEPS)
        self._left_out = PACE_WARM_UP
        self._began: float | None = None  # waits for data since
        self._waited: float | None = None  # seconds until the wrapper was called
        self._entered: Any = None  # when the network was called
        self.follow(module)
        network.register_forward_pre_hook(self._enter)

    def follow(self, module: nn.Module) -> None:
        """The network is wrapped as this module from here on."""
        module.register_forward_pre_hook(self._call)

    def mean(self) -> float | None:
        """The mean of the last steps; none until there are some."""
        times = list(self._times)
        return sum(times) / len(times) if len(times) >= PACE_LEAST else None

    def at(self, stage: str, phase: int = 0, left: int = 0) -> None:
        """Hear where the training is, as `Job.at` does."""
        if stage == "data":
            self._collect()
            self._began, self._waited, self._entered = time.perf_counter(), None, None
        elif stage == "backward" and phase == 0 and left == 1 and self._entered is not None and self._waited is not None:
            self._running.append((self._waited, self._entered, self._now()))
            self._waited = None

    def _call(self, *_: Any) -> None:
        if self._began is not None:
            self._waited, self._began = time.perf_counter() - self._began, None

    def _enter(self, *_: Any) -> None:
        if self._waited is not None and self._entered is None:
            self._entered = self._now()

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _collect(self) -> None:
        while self._running and (not self._cuda or self._running[0][2].query()):
            waited, entered, ended = self._running.popleft()
            took = entered.elapsed_time(ended) / 1000 if self._cuda else ended - entered
            if self._left_out:
                self._left_out -= 1  # the first steps set things up
            else:
                self._times.append(waited + took)


class Agreement:
    """What any rank wishes (bits of an integer), known to all at the same step.

    With several ranks the answer to what was asked at one step arrives at the next, so that no step waits for a message. Where
    steps take long, a message costs little and a step too many costs the time that a signal leaves: there it is waited for.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._flight: tuple[torch.Tensor, Any] | None = None
        self._slow = False  # agreed as well: any rank's step took long
        self._asked = time.monotonic()

    def ask(self, wishes: int) -> int:
        """Hand this rank's wishes in; returns what all ranks together wished at the last call (alone, and after a long step: at
        this one).

        A wish that is granted with this call is not handed in again: it would be granted twice.
        """
        if self._group is None:
            return wishes
        now = time.monotonic()
        slow, self._asked = now - self._asked > LONG_STEP, now
        result = self.settle()
        wishes &= ~result
        values = torch.tensor([*(wishes >> bit & 1 for bit in range(_WISHES)), slow], dtype=torch.int32)
        self._flight = (values, dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._group, async_op=True))
        return result | self.settle() if self._slow else result

    def settle(self) -> int:
        """Wait for the answer under way and return it."""
        if self._flight is None:
            return 0
        values, work = self._flight
        self._flight = None
        work.wait()
        *wished, slow = values.tolist()
        self._slow = bool(slow)
        return sum(bit << place for place, bit in enumerate(wished))
