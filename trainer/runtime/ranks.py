"""This rank among the others: processes, devices, precision, and the engine that trains a network on them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.config import RefusedError, UserError
from trainer.config.parallel import CUTS_WEIGHTS, Parallel, kind_of
from trainer.config.run import Train
from trainer.runtime.agreement import Agreement
from trainer.runtime.computing import Computing
from trainer.runtime.engine import Engine, Make, Whole, divisible
from trainer.runtime.pace import Pace
from trainer.spec import ParamGroup

log = logging.getLogger("graft")


class Runtime:
    """This rank, its device and what it does together with the others.

    `uncompiled`: why no network is to be compiled where that is left open, if anything says so (`config.compute.not_compiled`).
    Raises RefusedError when the ranks that were found are not those that were planned, UserError for a precision that the device
    does not have.
    """

    def __init__(self, parallel: Parallel, train: Train, *, planned: int | None, uncompiled: str | None) -> None:
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
        if cpu and train.precision == "fp16" and parallel.device != "cpu":
            raise UserError(
                "train.precision is fp16 and no GPU is visible; write bf16 or fp32 (parallel.device: cpu tries it, slowly)"
            )
        if cpu:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            local = int(os.environ.get("LOCAL_WORLD_SIZE", found))
            torch.set_num_threads(parallel.threads or max(1, cores // local))
        # The watch names the rank that hangs after `timeout`, while a checkpoint is written after twice that: these come later.
        timeout = timedelta(seconds=2 * parallel.timeout + 30)
        self.parallel = parallel
        self.kind = kind_of(parallel, found)
        if parallel.kind != "ddp" and found == 1:
            self._alone(cpu, timeout)
        self._accelerator = self._accelerate(cpu, train.clip, timeout)
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        if self.world != found:
            raise RefusedError(f"Accelerate found {self.world} rank(s) where the environment says {found}")
        # Small messages between hosts must not wait for the GPU: they have a group of their own.
        self._host_group: Any = dist.new_group(backend="gloo", timeout=timeout) if self.world > 1 else None
        self.computing = Computing(train, parallel, self.kind, self.device, self.everyone, uncompiled)
        # Checkpoints are written by threads, whose messages must not come between those of the training.
        self.savers: Savers | None = None
        if self.kind != "ddp" and self.world > 1:
            self.savers = Savers(self.rank, self.world, dist.new_group(backend="gloo", timeout=timeout))
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def _alone(self, cpu: bool, timeout: timedelta) -> None:
        """One rank has nobody to share anything out with; what it keeps on the host still wants a group of one."""
        if self.kind == "ddp":
            log.warning("parallel.kind: %s shares nothing out with one rank: it trains as ddp does", self.parallel.kind)
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update(alone)
        dist.init_process_group("gloo" if cpu else "nccl", timeout=timeout)

    def _accelerate(self, cpu: bool, clip: float | None, timeout: timedelta) -> Any:
        from accelerate import Accelerator, DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs

        handlers = [InitProcessGroupKwargs(timeout=timeout)]
        if self.kind.startswith("zero"):
            from trainer.runtime import zero

            zero.prepare_process(cpu, timeout)
            plugin = DeepSpeedPlugin(hf_ds_config=zero.configuration(self.parallel, clip, cuda=not cpu))
            return Accelerator(deepspeed_plugin=plugin, kwargs_handlers=handlers)
        # One bucket view saves a copy of the gradients; buffers follow rank 0 at each forward, so its state is the run's.
        handlers.append(DistributedDataParallelKwargs(gradient_as_bucket_view=True))
        return Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=handlers)

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def cuts_weights(self) -> bool:
        """Whether no rank holds the network whole."""
        return self.kind in CUTS_WEIGHTS

    @property
    def home(self) -> torch.device:
        """Where a network waits for its engine: on the host, where no device is to hold it whole."""
        return torch.device("cpu") if self.cuts_weights else self.device

    def engine(
        self, module: nn.Module, network: nn.Module, groups: Sequence[ParamGroup], make: Make,
        units: Sequence[nn.Module] | None = (),
    ) -> Engine:  # fmt: skip
        """Put a module together for these ranks, on the device where it is not yet. `network`: what of it is called without a
        gradient; `groups`: what learns, now (`requires_grad`) or later, in the order of its starts; `make`: an optimizer for
        groups; `units`: parts that may be gathered, compiled or worked out again one at a time, none where it has to stay whole.
        Raises UserError for what cannot be shared out or computed so.
        """
        self.computing.around(module, network, units)
        if self.kind == "ddp":
            return Whole(self, module, network, groups, make)
        divisible(self.kind, module)
        if self.kind == "fsdp":
            from trainer.runtime.fsdp import Fsdp

            offload, reshard = self.parallel.offload == "cpu", self.parallel.reshard_after_forward
            return Fsdp(self, module, network, groups, make, units or (), offload=offload, reshard=reshard)
        from trainer.runtime.zero import Zero3, Zero12

        if self._accelerator.deepspeed_engine_wrapped is not None:
            raise UserError(f"parallel.kind: {self.kind} takes one network, and this task trains several; write ddp or fsdp")
        kind = Zero3 if self.kind == "zero3" else Zero12

        def prepare(given: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
            return self._accelerator.prepare(given, optimizer)[0]

        words = self._accelerator.deepspeed_plugin.deepspeed_config
        return kind(self, module, network, groups, make, prepare, self._accelerator.free_memory, words)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network for several ranks, on the device."""
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
        return self.wrap(network)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for calls outside the wrapped network."""
        return self.computing.autocast()

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What fp16 scales gradients by."""
        return self.computing.scaler

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

    def pace(self, engine: Engine) -> Pace:
        """Measures this rank's own time a step."""
        return Pace(self.device, engine)

    def agreement(self) -> Agreement:
        return Agreement(self._host_group)


class Savers:
    """The threads of all ranks that save together (`checkpoint.Others`)."""

    def __init__(self, rank: int, world: int, group: Any) -> None:
        self.rank, self.world, self._group = rank, world, group

    def tell(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._group)
        return found
