"""ZeRO by DeepSpeed, through Accelerate: what of the optimizer, the gradients and the weights is cut over the ranks.

DeepSpeed flattens the parameters of each optimizer group and gives every rank a row of the result (stages 1 and 2), or a piece
of every parameter (stage 3). It reads and writes no checkpoint here: weights and states go in and out by name. Where other
parameters begin to learn it is put together anew, since it takes those that learn at its start alone.
"""

from __future__ import annotations

import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.parallel import Parallel
from trainer.runtime.engine import Make, named, without_gradient
from trainer.runtime.sharded import Sharded, Share
from trainer.spec import ParamGroup, Piece

if TYPE_CHECKING:
    from trainer.runtime.ranks import Runtime

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
BUCKET = 50_000_000  # numbers that are averaged at a time
PERSISTS = 100_000  # numbers: smaller parameters stay whole on every rank under zero3


def prepare_process(cpu: bool, timeout: Any) -> None:
    """Before the Accelerator is made: where DeepSpeed looks for its device, and what it leaves be. Raises UserError where it is
    not installed."""
    if find_spec("deepspeed") is None:
        raise UserError(
            "parallel.kind: zero1, zero2 and zero3 are DeepSpeed's, which is not installed here; write pip install "
            "'graft-trainer[zero]', or parallel.kind: fsdp"
        )
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        from accelerate import PartialState

        PartialState(cpu=True, timeout=timeout)  # made by an Accelerator for DeepSpeed, it would find one rank
    import deepspeed

    # Compiled at the first use, by every rank behind one lock, which a rank that is killed leaves behind for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)


def configuration(parallel: Parallel, clip: float | None, cuda: bool) -> dict[str, Any]:
    """DeepSpeed's own words for the run file."""
    stage = STAGES[parallel.kind]
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": BUCKET}
    if stage == 3:
        # its own linear layer would stand in for torch's in every network of the process
        zero |= {"stage3_param_persistence_threshold": PERSISTS, "memory_efficient_linear": False}
    if parallel.offload != "none":
        place: dict[str, Any] = {"device": parallel.offload, "pin_memory": cuda}
        zero["offload_optimizer"] = dict(place)
        if stage == 3:
            zero["offload_param"] = dict(place)
    return {
        "zero_optimization": zero, "gradient_clipping": clip or 0.0, "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }  # fmt: skip


class Zero(Sharded):
    """A DeepSpeed engine; its inner optimizer holds flat rows of this rank's values in place of the parameters."""

    def __init__(
        self, runtime: Runtime, module: nn.Module, network: nn.Module, groups: Sequence[ParamGroup], make: Make,
        prepare: Callable[[nn.Module, torch.optim.Optimizer], Any], release: Callable[[], None], words: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(runtime, module, network, groups)
        self._make, self._prepare, self._release = make, prepare, release
        self._settle(words)
        self._start()
        # DeepSpeed sums gradients where none came, and moves by them
        self._seen: set[int] = set()
        self._hooks: list[Any] = []
        for _, parameter in named(self._began()):
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._see))  # type: ignore[no-untyped-call]

    def _settle(self, words: dict[str, Any]) -> None:
        """Before the first start, with DeepSpeed's own words for the run file."""

    def _see(self, parameter: torch.Tensor) -> None:
        self._seen.add(id(parameter))

    def _start(self) -> None:
        """Put everything together for what learns now."""
        self._engine = self._prepare(self._inner, self._make(self._began()))
        self._zero = self._engine.optimizer
        self.module = self._engine
        self.take(self._zero.optimizer)
        self._norm: torch.Tensor | None = None
        self._hand_over(lambda: self._norm)
        self._arrange()
        self._follow_buffers(self._engine)

    @abstractmethod
    def _hand_over(self, norm: Callable[[], Any]) -> None:
        """Have DeepSpeed's step take the norm that is already known."""

    @abstractmethod
    def _rows(self) -> Sequence[torch.Tensor]:
        """The flat rows that the optimizer moves."""

    @abstractmethod
    def _own_norm(self) -> torch.Tensor:
        """The norm over all ranks, as DeepSpeed works it out; not finite where a gradient is not."""

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def norm(self) -> torch.Tensor:
        if self._hooks:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
            missing = [name for name, p in named(self._began()) if id(p) not in self._seen]
            if missing:
                raise UserError(without_gradient(missing))
        self._norm = self._own_norm()
        return self._norm

    def step(self, norm: torch.Tensor, clip: float | None) -> None:
        self._engine.step()  # clips, by its configuration
        self._norm = None

    def clear(self) -> None:
        super().clear()
        if self._norm is not None:  # not finite: DeepSpeed takes no step either, and forgets the gradients
            self._engine.step()
            self._norm = None

    @torch.no_grad()
    def regroup(self) -> None:
        """The groups that learnt before come first again, and their rows are cut as they were: their state moves over."""
        states = [self.optimizer.state.get(row) for row in self._rows()]
        kept = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in self.optimizer.param_groups]
        self._take_off()
        self._start()
        for row, state in zip(self._rows(), states, strict=False):
            if state:
                self.optimizer.state[row] = state
        for group, values in zip(self.optimizer.param_groups, kept, strict=False):
            group.update(values)

    def _take_off(self) -> None:
        for hook in (self._engine.module_forward_pre_hook, self._engine.module_forward_post_hook):
            hook.remove()
        self._release()  # lets DeepSpeed take its own hooks off


class Zero12(Zero):
    """Stages 1 and 2: every rank has the whole network; beside it a 32-bit copy of its row of what learns, which is moved and
    then gathered into the network."""

    def _start(self) -> None:
        super()._start()
        self.called = self.network
        self.meets_early = bool(self._zero.partition_gradients)  # stage 2

    def _hand_over(self, norm: Callable[[], Any]) -> None:
        self._zero.scaled_global_norm = lambda norm_type=2: norm()

    def _rows(self) -> Sequence[torch.Tensor]:
        rows: Sequence[torch.Tensor] = self._zero.single_partition_of_fp32_groups
        return rows

    def _own_norm(self) -> torch.Tensor:
        self._zero._wait_for_offload_copies()
        norm: torch.Tensor = type(self._zero).scaled_global_norm(self._zero)
        return norm

    def publish(self) -> None:
        self._zero.update_lp_params()

    def _find(self) -> dict[str, Share]:
        names = {parameter: name for name, parameter in named(self.groups)}
        found = {}
        for row, parameters in zip(self._rows(), self._zero.bit16_groups, strict=True):
            for parameter in parameters:
                place, shape = parameter._hp_mapping, tuple(parameter.shape)
                if place is None:  # none of it lies in this rank's row
                    found[names[parameter]] = Share(row, 0, Piece(row.detach()[:0], 0, shape))
                    continue
                here = place.hp_fragment_address
                values = row.detach()[here.start : here.start + here.numel]
                found[names[parameter]] = Share(row, here.start, Piece(values, place.lp_fragment_address.start, shape))
        return found

    def _together(self) -> list[list[str]]:
        names = {parameter: name for name, parameter in named(self.groups)}
        return [[names[p] for p in group] for group in self._zero.bit16_groups]


class Zero3(Zero):
    """Stage 3: every rank has a piece of every parameter, frozen ones too; a layer's are gathered when it is called."""

    lockstep = meets_early = True

    @torch.no_grad()
    def _settle(self, words: dict[str, Any]) -> None:
        """Cut one parameter after the other on its way from the host, so that no device ever holds the network whole."""
        from deepspeed.runtime.zero import Init

        Init(module=self._inner, config_dict_or_path=words, dtype=torch.float32)
        for buffer in self._inner.buffers():
            buffer.data = buffer.data.to(self._runtime.device)

    def _start(self) -> None:
        super()._start()
        self.called = self._engine

    def _hand_over(self, norm: Callable[[], Any]) -> None:
        self._zero._get_norm_groups = lambda: [norm()]

    def _rows(self) -> Sequence[torch.Tensor]:
        rows: Sequence[torch.Tensor] = self._zero.fp32_partitioned_groups_flat
        return rows

    def _own_norm(self) -> torch.Tensor:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        norm: torch.Tensor = combine_grad_norm_groups(type(self._zero)._get_norm_groups(self._zero))
        return norm

    def meetings(self) -> list[nn.Module]:
        own = [part for part in self.network.modules() if any(True for _ in part.parameters(recurse=False))]
        return [part for part in own if part is not self.network]

    @torch.no_grad()
    def publish(self) -> None:
        self._zero._partition_all_parameters()
        for number in range(len(self._rows())):
            self._zero._reassign_or_swap_out_partitioned_parameters(number)
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)

    def _take_off(self) -> None:
        self._zero._partition_all_parameters()
        super()._take_off()
        for module in self._inner.modules():  # made once for each module, they would go on with the engine that is gone
            for name in ("pre_bwd_fn", "post_bwd_fn"):
                module.__dict__.pop(name, None)

    def _find(self) -> dict[str, Share]:
        names = {parameter: name for name, parameter in named(self.groups)}
        found = {}
        for row, parameters in zip(self._rows(), self._zero.fp16_groups, strict=True):
            offset = 0
            for parameter in parameters:
                start, count = self._cut(parameter)
                piece = Piece(row.detach()[offset : offset + count], start, tuple(parameter.ds_shape))
                found[names[parameter]] = Share(row, offset, piece)
                offset += parameter.partition_numel()
        return found

    def _cut(self, parameter: Any) -> tuple[int, int]:
        """Where this rank's piece of a parameter begins, and how many values it has: the last ones are filled up with zeros."""
        each = parameter.partition_numel()
        start = min(self._runtime.rank * each, parameter.ds_numel)
        return start, min(each, parameter.ds_numel - start)

    def _elsewhere(self, parameter: Any) -> Piece | None:
        if not hasattr(parameter, "ds_tensor"):
            return None  # beside the module that is cut
        start, count = self._cut(parameter)
        return Piece(parameter.ds_tensor.detach().view(-1)[:count], start, tuple(parameter.ds_shape))

    def _together(self) -> list[list[str]]:
        names = {parameter: name for name, parameter in named(self.groups)}
        return [[names[p] for p in group] for group in self._zero.fp16_groups]
