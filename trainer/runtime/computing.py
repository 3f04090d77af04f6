"""Precision, memory format, compiler and activation checkpointing, put around networks in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import MethodType
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.parallel import Parallel
from trainer.config.run import Train
from trainer.runtime import compiled
from trainer.runtime.hardware import channels_last, set_tf32
from trainer.runtime.recompute import recompute

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 2.0**16  # of fp16's losses at first: halved after each step that overflows, doubled after 2,000 that do not
log = logging.getLogger("graft")


class Computing:
    """How these ranks compute: what the run file's keys come to on their devices, the same on all of them.

    `scaler` is that of fp16, else none; `fused`: an optimizer that torch has in one kernel is made so; `told` says what was
    chosen. `everyone` gives a value of all ranks; `uncompiled`: why nothing is to be compiled where that is left open, if
    anything says so. Raises UserError for what the device does not have.
    """

    def __init__(
        self, train: Train, parallel: Parallel, kind: str, device: torch.device, everyone: Callable[[Any], list[Any]],
        uncompiled: str | None,
    ) -> None:  # fmt: skip
        self._train, self._kind, self._device, self._everyone, self._uncompiled = train, kind, device, everyone, uncompiled
        self._blocks = 0  # of all networks so far
        self._type = TYPES.get(train.precision)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=SCALE) if train.precision == "fp16" else None
        on_device = device.type == "cuda" and parallel.offload == "none"
        self.fused = on_device if train.fused == "auto" else train.fused
        self.told: dict[str, Any] = {
            "precision": train.precision, "tf32": set_tf32(train.tf32, device), "channels_last": False, "compile": "none",
            "checkpointing": train.checkpointing, "fused": self.fused,
        }  # fmt: skip

    @cached_property
    def _compile(self) -> tuple[str, str]:
        """`none`, `blocks` or `whole`, and why nothing is compiled where that was left open: found once, for all networks."""
        asked = self._train.compile
        if asked == "none":
            return asked, ""
        why = self._uncompiled or ("" if self._device.type == "cuda" else "a CPU, where it gains little")
        if asked != "auto" or not why:
            lacking = next((reason for reason in self._everyone(compiled.lacks(self._device)) if reason), "")
            if lacking and asked != "auto":
                raise UserError(f"train.compile: {asked} needs what torch cannot find or use here ({lacking}); write none")
            why = lacking
        return ("none" if why else "blocks" if asked == "auto" else asked), why

    def _tell(self, chosen: str, why: str) -> None:
        """Say how a network is compiled; what is said of several is how the first was that is."""
        before = self.told["compile"]
        if before.startswith("none"):
            self.told["compile"] = f"{chosen} ({why})" if why else chosen
        if self._train.compile != "none" and self.told["compile"] != before:
            log.info("compiled: %s", self.told["compile"])

    def around(self, module: nn.Module, network: nn.Module, units: Sequence[nn.Module] | None) -> None:
        """Put it around a network: `module` is what is called to learn, `network` what of it is called without a gradient,
        `units` its blocks; none: it is left whole. Raises UserError for what cannot be done with it."""
        whole, units = units is None, units or ()
        if self._kind == "ddp" and channels_last(network, self._train.channels_last, self._device):
            self.told["channels_last"] = True
        if self._train.checkpointing and not units and not whole:
            raise UserError("train.checkpointing: the network has no blocks that are called one after the other; leave it out")
        if self._train.compile == "blocks" and not units and not whole:
            raise UserError("train.compile: blocks, and the network has none that are called one after the other; write whole")
        names = {part: name for name, part in network.named_modules()}
        chosen, why = self._compile
        if chosen == "blocks" and not units:
            chosen, why = "none", "no blocks"
        self._tell(chosen, why)
        parts = {"none": [], "blocks": units, "whole": [network]}[chosen]
        if parts:
            self._blocks += len(units)
            compiled.settle(self._blocks)
        for part in parts:
            compiled.compiled(part, names.get(part) or "the network")
        if parts and self._train.checkpointing:
            _unwatched(units, names)
        if self._train.checkpointing:  # around compiled blocks, so that random state and buffers are put back by torch itself
            for unit in units:
                recompute(unit)
        if self._type is not None:
            self._in_precision(module)

    def _in_precision(self, module: nn.Module) -> None:
        """Mixed precision inside a module, whose answers are in 32 bits."""
        from accelerate.utils import convert_outputs_to_fp32

        forward = module.forward

        def mixed(_: nn.Module, *given: Any, **named: Any) -> Any:
            with self.autocast():
                return forward(*given, **named)

        module.forward = MethodType(convert_outputs_to_fp32(mixed), module)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for calls outside of what learns."""
        return nullcontext() if self._type is None else torch.autocast(self._device.type, dtype=self._type)


def _unwatched(units: Sequence[nn.Module], names: dict[nn.Module, str]) -> None:
    """Raises UserError where something looks at a layer within a block: its second pass would compute by other code."""
    for unit in units:
        watched = next((part for part in unit.modules() if part is not unit and part._forward_hooks), None)
        if watched is not None:
            raise UserError(
                f"train.compile and train.checkpointing together leave nothing to see within a block, and a loss looks at "
                f"'{names[watched]}'; take one of them off, or let the loss look at '{names[unit]}'"
            )
