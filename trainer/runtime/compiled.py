"""torch.compile inside modules: the code changes, the names do not."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from trainer.config import UserError

BACKEND = "inductor"
_VARIANTS = 64  # of a network: kinds of batches (full, last, in evaluations) times stages of what learns


def lacks(device: torch.device) -> str:
    """Why nothing can be compiled for a device here, found by trying; empty where it can."""
    try:
        torch.compile(_tried, backend=BACKEND, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # whatever a compiler says
        return _told(error)
    return ""


def _told(error: BaseException) -> str:
    """What a compiler said first."""
    error = getattr(error, "inner_exception", error)
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _tried(values: torch.Tensor) -> torch.Tensor:
    return values.sin() + values


def settle(count: int) -> None:
    """Settings of torch's compiler for networks of so many blocks together, which may be of one class and share its limit.

    Each shape has code of its own, whatever came before it (else a resumed run would compute by other code than the one that was
    not stopped); random numbers are torch's own; what would be compiled again and again stops the run.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    dynamo.recompile_limit = _VARIANTS + 16 * count
    dynamo.accumulated_recompile_limit = 16 * dynamo.recompile_limit
    dynamo.fail_on_recompile_limit_hit = True
    inductor.fallback_random = True


def compiled(module: nn.Module, name: str) -> None:
    """Compile what a module does between its hooks. When it is called it raises UserError for what torch cannot compile."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    forward = torch.compile(module.forward, backend=BACKEND, dynamic=False)

    def call(_: nn.Module, *given: Any, **named: Any) -> Any:
        try:
            return forward(*given, **named)
        except FailOnRecompileLimitHit as error:
            raise UserError(
                f"train.compile: '{name}' is compiled again and again, since what it does depends on something that changes from "
                "call to call; write none"
            ) from error
        except TorchDynamoException as error:
            raise UserError(f"train.compile: torch cannot compile '{name}' ({_told(error)}); write none") from error

    module.forward = MethodType(call, module)
