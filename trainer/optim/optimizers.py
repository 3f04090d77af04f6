"""From the run file to an optimizer."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

import torch

from trainer.config import UserError, nearest
from trainer.config.optimizers import SGD, Adam, AdamW, Named, Optimizer, Prodigy, ScheduleFree, Timm, Torch
from trainer.optim.adatask import AdaTask, Gradients
from trainer.spec import ParamGroup

# of timm: `adahessian` wants second derivatives; the fused ones are NVIDIA apex's
_REFUSED = {
    "adahessian": "it needs second derivatives",
    "LBFGS": "it evaluates the loss several times a step",
    "SparseAdam": "it takes sparse gradients only",
    **dict.fromkeys(("kron", "kronw", "kronc"), "it draws from a random state of its own, which no checkpoint holds"),
}


def build_optimizer(
    config: Optimizer, learning: Iterable[ParamGroup], apart: Gradients | None = None, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimizer over what learns, now or later; 1-d parameters in groups without decay when `decay_norms` is false.

    `apart` gives the gradients of several losses, which are then to keep their own moments (for adam and adamw); `fused`: its
    step is one kernel, where torch has one. Raises UserError for names and arguments that the library does not know.
    """
    groups: list[dict[str, Any]] = []
    for given in learning:
        parameters = [p for _, p in given.parameters]
        decayed = parameters if config.decay_norms else [p for p in parameters if p.ndim > 1]
        others = [] if config.decay_norms else [p for p in parameters if p.ndim <= 1]
        for params, decay in ((decayed, config.weight_decay if given.decay else 0.0), (others, 0.0)):
            if params:
                groups.append({"params": params, "lr": config.lr * given.rate, "weight_decay": decay})
    if apart is not None:
        if not isinstance(config, Adam | AdamW):
            raise UserError(f"losses.balance: adatask keeps Adam's moments apart, which {config.kind} has not; write adamw")
        decoupled = isinstance(config, AdamW)
        return AdaTask(groups, gradients=apart, lr=config.lr, betas=config.betas, eps=config.eps, decoupled=decoupled)
    match config:
        case SGD():
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused or None)
        case Adam():
            return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)
        case AdamW():
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)
        case Timm():
            return _timm(config, groups)
        case Torch():
            return _made(_torch_class(config.name), f"torch.optim.{config.name}", config, groups)
        case ScheduleFree():
            import schedulefree

            classes = {"sgd": "SGDScheduleFree", "adamw": "AdamWScheduleFree", "radam": "RAdamScheduleFree"}
            if "warmup_steps" in config.args:
                raise UserError("optimizer.args: write the warm-up as schedule.warmup, which counts samples, not as warmup_steps")
            made = _made(getattr(schedulefree, classes[config.name]), f"schedule_free {config.name}", config, groups)
            made.train()  # type: ignore[attr-defined]
            return made
        case Prodigy():
            import prodigyopt

            if len({group["lr"] for group in groups}) > 1:
                raise UserError("optimizer.kind: prodigy takes one learning rate for all; leave rates and layer_decay out")
            return _made(prodigyopt.Prodigy, "prodigy", config, groups)
    raise TypeError(f"no optimizer for {type(config).__name__}")


def set_momentum(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the momentum, or the first beta, of every group that has one."""
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (value, *group["betas"][1:])
        elif "momentum" in group:
            group["momentum"] = value


def _torch_class(name: str) -> Any:
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    _refuse(name)
    if name not in known:
        raise UserError(f"optimizer.name: torch.optim has no '{name}'{nearest(name, [k for k in known if k not in _REFUSED])}")
    return known[name]


def _refuse(name: str) -> None:
    if name in _REFUSED:
        raise UserError(f"optimizer.name: {name} does not fit the training loop: {_REFUSED[name]}; choose another")


def _timm(config: Timm, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from timm.optim._optim_factory import create_optimizer_v2, get_optimizer_info, list_optimizers

    _refuse(config.name)
    known = [str(name) for name in list_optimizers() if name not in _REFUSED]
    if config.name not in known:
        raise UserError(f"optimizer.name: timm has no optimizer '{config.name}'{nearest(config.name, known)}")
    info = get_optimizer_info(config.name)
    if isinstance(info.opt_class, type):
        _check(info.opt_class, f"timm's {config.name}", config)
    elif info.opt_class.startswith("bitsandbytes."):  # which timm takes on GPUs alone, although it works on CPUs as well
        kind = _bitsandbytes(info.opt_class, config.name)
        defaults = {"momentum": 0.9, **(info.defaults or {})} if info.has_momentum else {}
        return _made(
            kind, f"bitsandbytes' {kind.__name__}", config.model_copy(update={"args": {**defaults, **config.args}}), groups
        )
    try:
        made: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, **_arguments(config)
        )
    except (AssertionError, ImportError, ModuleNotFoundError, NameError) as error:  # how timm says that a library is missing
        if not config.name.startswith("fused"):
            raise
        raise UserError(f"optimizer.name: {config.name} needs NVIDIA's apex, which is not installed here") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {config.name}: {error}") from error
    return made


def _bitsandbytes(path: str, name: str) -> Any:
    """The class that a dotted path names."""
    module, _, kind = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise UserError(f"optimizer.name: {name} needs bitsandbytes, which is not installed here") from error


def _made(kind: Any, called: str, config: Named, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    _check(kind, called, config)
    taken = inspect.signature(kind.__init__).parameters
    if "weight_decay" not in taken:
        if config.weight_decay:
            raise UserError(f"optimizer.weight_decay: {called} has none; leave it out")
        groups = [{key: value for key, value in group.items() if key != "weight_decay"} for group in groups]
    try:
        made: torch.optim.Optimizer = kind(groups, lr=config.lr, **_arguments(config))
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {called}: {error}") from error
    return made


def _arguments(config: Named) -> dict[str, Any]:
    """The arguments as Python has them: pairs of numbers are tuples there."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.args.items()}


def _check(kind: Any, called: str, config: Named) -> None:
    """Refuse arguments that are not the class's; raises UserError with the nearest."""
    taken = inspect.signature(kind).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        return
    own = [name for name in taken if name not in ("self", "params", "lr", "weight_decay")]
    for name in config.args:
        if name in ("lr", "weight_decay"):
            raise UserError(f"optimizer.args: write '{name}' as optimizer.{name}")
        if name not in own:
            raise UserError(f"optimizer.args: {called} takes no '{name}'{nearest(name, own) or '; it takes ' + ', '.join(own)}")
