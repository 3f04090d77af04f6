"""Small adapters beside the frozen weights, by the peft library."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.strategies.lora import Config
from trainer.strategies.base import Graft, Learns, matching, parts

ADAPTER = "default"  # peft's name for the only one
_LAYERS = (nn.Linear, nn.Conv2d)
_LINEAR_ONLY = ("oft",)


def inject(config: Config, network: nn.Module, head: Sequence[str], fresh: Sequence[str], seed: int) -> None:
    """Put the adapters in, drawn from `seed`; the network computes the same as before. Raises UserError."""
    # peft imports it where it is installed, and it warns of kernels that nobody asked for
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = _targets(config, network, head, fresh)
    # matched from the first letter to the last: peft would take a plain name for the end of another as well
    pattern = "|".join(re.escape(name) for name in targets)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about attributes that only peft's own saving looks at
        torch.default_generator.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(peft_config(config, pattern), network, adapter_name=ADAPTER)
        except (ValueError, TypeError, NotImplementedError, AssertionError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"strategy.method: {config.method} does not fit these layers ({told}); name others as strategy.targets"
            ) from error
    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            _hand_over(module.get_base_layer(), module)  # whoever looks at what a layer gives is to see the adapter's share too


def peft_config(config: Config, targets: str | list[str]) -> Any:
    """The adapter's configuration in peft's own words."""
    import peft

    rank, alpha = config.rank, config.alpha if config.alpha is not None else config.rank
    match config.method:
        case "lora" | "dora":
            return peft.LoraConfig(
                r=rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=targets, use_dora=config.method == "dora"
            )
        case "loha":
            return peft.LoHaConfig(r=rank, alpha=alpha, module_dropout=config.dropout, target_modules=targets)
        case "lokr":
            return peft.LoKrConfig(r=rank, alpha=alpha, module_dropout=config.dropout, target_modules=targets)
        case "ia3":
            return peft.IA3Config(target_modules=targets, feedforward_modules=[])
        case "oft":
            return peft.OFTConfig(r=0, oft_block_size=rank, module_dropout=config.dropout, target_modules=targets)


def choose(config: Config, graft: Graft) -> dict[str, Learns]:
    """The adapters, what is new, and what `train` names. Raises UserError where what is new is to be kept."""
    if config.head == "keep":
        _kept(graft)
    names = [name for name, _ in graft.network.named_parameters()]
    adapters = [name for name in names if _is_adapter(graft.network, name)]
    chosen = dict.fromkeys(adapters, Learns())
    for pattern in config.train:
        found = [name for name in matching(pattern, names) if name not in chosen]
        if not found:
            raise UserError(f"strategy.train: the network has no part '{pattern}'{nearest(pattern, parts(names))}")
        chosen |= dict.fromkeys(found, Learns())
    return chosen if config.head == "keep" else chosen | graft.new()


def _kept(graft: Graft) -> None:
    """Raises UserError where a head that does not learn would say nothing."""
    tables = [name for name in graft.head if isinstance(graft.network.get_submodule(name), nn.Embedding)]
    new = [*graft.fresh, *(f"{name}.weight" for name in tables)]
    if new:
        raise UserError(f"strategy.head: keep, and '{new[0]}' is new and has to learn; write full")


def restless(network: nn.Module) -> str | None:
    """An attention of torch's own that is adapted: it reads weights without calling layers, and peft merges them each time."""
    from peft.tuners.lora.layer import MultiheadAttention

    return next((name for name, module in network.named_modules() if isinstance(module, MultiheadAttention)), None)


def merge(network: nn.Module) -> nn.Module:
    """Add the adapters to the weights they stand beside and take them out: the network that the library of the trunk knows."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(network, BaseTunerLayer):
        raise TypeError("a network that is one adapted layer has no place to put it back into")
    # one at a time, the outermost first: adapted attention has an adapted layer inside, which it merges itself
    while (found := next(((n, m) for n, m in network.named_modules() if isinstance(m, BaseTunerLayer)), None)) is not None:
        name, layer = found
        parent, _, child = name.rpartition(".")
        if hasattr(layer, "unload_and_optionally_merge_module"):  # attention, whose weights are no parameters in between
            base = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            layer.merge(safe_merge=True)
            base = layer.get_base_layer()
        _hand_over(layer, base)
        setattr(network.get_submodule(parent), child, base)
    if hasattr(network, "peft_config"):
        del network.peft_config
    return network


def _hand_over(layer: Any, to: Any) -> None:
    """The hooks on what a layer gives go to the layer that stands in its place."""
    if layer is not to:
        to._forward_hooks.update(layer._forward_hooks)
        layer._forward_hooks.clear()


def _is_adapter(network: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to an adapter: below a peft layer, and not part of the layer that it wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    pieces = name.split(".")
    for end in range(len(pieces) - 1, 0, -1):
        if isinstance(network.get_submodule(".".join(pieces[:end])), BaseTunerLayer):
            return pieces[end] != "base_layer"
    return False


def _targets(config: Config, network: nn.Module, head: Sequence[str], fresh: Sequence[str]) -> list[str]:
    """The names of the layers that get an adapter: none that is trained in full anyway."""
    attentions = [name for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)]
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (*_LAYERS, *([nn.MultiheadAttention] if config.method == "lora" else [])))
        and not any(name == h or name.startswith(f"{h}.") for h in head)
        # torch's attention reads the weights of its output layer without calling it: it is adapted as a whole, by lora alone
        and not any(name.startswith(f"{attention}.") for attention in attentions)
    }
    free = {n: m for n, m in layers.items() if f"{n}.weight" not in fresh and not _in_full(n, config.train, layers)}
    if config.targets == "auto":
        linear = [name for name, module in free.items() if not isinstance(module, nn.Conv2d)]
        chosen = linear if linear or config.method in _LINEAR_ONLY else [n for n, m in free.items() if _plain(m)]
        if not chosen:
            raise UserError(
                f"strategy.targets: the trunk has no layer that {config.method} could be put beside; try another strategy"
            )
        return chosen
    found: dict[str, None] = {}
    for pattern in config.targets:
        fits = [n for n in free if n == pattern or n.endswith(f".{pattern}") or fnmatchcase(n, pattern)]
        if not fits:
            if pattern in layers or any(pattern.startswith(h) for h in head):
                raise UserError(f"strategy.targets: '{pattern}' is trained in full; an adapter beside it would do nothing more")
            if any(name == pattern for name, _ in network.named_modules()):
                raise UserError(f"strategy.targets: '{pattern}' is not one layer; write '{pattern}.*' for all that are in it")
            near = nearest(pattern, [*layers, *(name.rpartition(".")[2] for name in layers)])
            raise UserError(f"strategy.targets: '{pattern}' is no linear layer or convolution of the network{near}")
        found |= dict.fromkeys(fits)
    if config.method in _LINEAR_ONLY and (odd := [n for n in found if isinstance(layers[n], nn.Conv2d)]):
        raise UserError(f"strategy.targets: {config.method} goes beside linear layers only, and '{odd[0]}' is a convolution")
    return list(found)


def _plain(module: object) -> bool:
    """Whether a convolution mixes its channels: a depthwise one has too few weights for an adapter to save any."""
    return not isinstance(module, nn.Conv2d) or module.groups == 1


def _in_full(name: str, train: Sequence[str], layers: Iterable[str]) -> bool:
    return any(name in matching(pattern, list(layers)) for pattern in train)
