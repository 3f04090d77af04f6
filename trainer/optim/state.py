"""An optimizer's state as named tensors and JSON, whatever its author keeps: what a resume to the bit needs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainer.config import GraftError

GROUP = "@group"  # no parameter's name begins so
_SET = ("params", "lr", "initial_lr")  # what the schedule and the strategy set anew


def pack(optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state by parameter name: tensors, and a JSON of everything else; the groups' own counters among them.

    A tensor is called `parameter.key`, one in a list `parameter.key[i]`. Raises GraftError for what is neither a tensor nor a
    plain value.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    host: list[str] = []
    for parameter, state in optimizer.state.items():
        owner = names[parameter]
        for key, value in state.items():
            _put(f"{owner}.{key}", owner, key, value, tensors, values)
            if isinstance(value, torch.Tensor) and value.device.type == "cpu" and parameter.device.type != "cpu":
                host.append(f"{owner}.{key}")
    counters, counted = group_counters(optimizer)
    return tensors | counters, {"values": values | counted, "host": host}


def group_counters(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What an optimizer counts for its groups: tensors, and the JSON of everything else, as `pack` gives them."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    settings = inspect.signature(type(optimizer).__init__).parameters  # of the run file, which may change between attempts
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key not in _SET and key not in settings:
                _put(f"{GROUP}{index}.{key}", f"{GROUP}{index}", key, value, tensors, values)
    return tensors, values


def set_group_counters(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], packed: Mapping[str, Any]
) -> None:  # fmt: skip
    """The inverse of `group_counters`, out of all that `pack` gave."""
    unpack(
        optimizer, {}, {name: value for name, value in tensors.items() if name.startswith(GROUP)},
        {"values": {owner: held for owner, held in packed.get("values", {}).items() if owner.startswith(GROUP)}},
    )  # fmt: skip


def _put(
    name: str, owner: str, key: str, value: Any, tensors: dict[str, torch.Tensor], values: dict[str, dict[str, Any]]
) -> None:  # fmt: skip
    if isinstance(value, torch.Tensor):
        tensors[name] = value
    elif isinstance(value, list | tuple) and any(isinstance(one, torch.Tensor) for one in value):
        kept: list[Any] = []
        for number, one in enumerate(value):
            if isinstance(one, torch.Tensor):
                tensors[f"{name}[{number}]"] = one
                kept.append({"tensor": number})
            else:
                kept.append({"value": _plain(name, one)})
        values.setdefault(owner, {})[key] = {"list": kept, "tuple": isinstance(value, tuple)}
    else:
        values.setdefault(owner, {})[key] = {"value": _plain(name, value), "tuple": isinstance(value, tuple)}


def _plain(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=True))
    except (TypeError, ValueError):
        raise GraftError(
            f"the optimizer keeps a {type(value).__name__} in its state ({name}), which no checkpoint can hold; choose another"
        ) from None


def unpack(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor],
    packed: Mapping[str, Any],
) -> None:  # fmt: skip
    """Put a state back: the inverse of `pack`. Parameters that are not the optimizer's are passed over."""
    ours = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    values: Mapping[str, Mapping[str, Any]] = packed.get("values", {})
    host = set(packed.get("host", []))
    plain = [name for name in tensors if not name.endswith("]")]
    found: dict[str, dict[str, Any]] = {}
    for name in plain:
        owner, _, key = name.rpartition(".")
        found.setdefault(owner, {})[key] = tensors[name]
    for owner, held in values.items():
        for key, value in held.items():
            found.setdefault(owner, {})[key] = _value(f"{owner}.{key}", value, tensors)
    for owner, state in found.items():
        if owner.startswith(GROUP):
            index = int(owner.removeprefix(GROUP))
            if index < len(optimizer.param_groups):
                optimizer.param_groups[index].update({key: _copied(value) for key, value in state.items()})
            continue
        parameter = parameters.get(owner)
        if parameter is not None and parameter in ours:
            on_host = not counts_on_device(optimizer)
            optimizer.state[parameter] = {
                key: _like(
                    _moved(value, parameter.device, keep=on_host and (key == "step" or f"{owner}.{key}" in host)), parameter
                )
                for key, value in state.items()
            }


def counts_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its counters of steps are where its parameters are: one kernel reads both."""
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """The state of a parameter lies in memory as it does itself, as it did when the optimizer made it."""
    if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)
    return value


def _value(name: str, held: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    if "list" in held:
        value: Any = [tensors[f"{name}[{one['tensor']}]"] if "tensor" in one else one["value"] for one in held["list"]]
    else:
        value = held["value"]
    return tuple(value) if held.get("tuple") else value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _moved(value: Any, device: torch.device, *, keep: bool) -> Any:
    """Counters of steps stay on the host, as torch's optimizers want them."""
    if isinstance(value, torch.Tensor):
        return value if keep else value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_moved(one, device, keep=keep) for one in value)
    return value
