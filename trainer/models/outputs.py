"""Puts the heads of a task in the place of a network's output layers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from trainer.config import UserError, nearest
from trainer.config.adapt import Adapt
from trainer.config.heads import AttentionHead, Layers, LinearHead, MlpHead
from trainer.models.heads import Attention, Heads, Mlp, last_layers
from trainer.models.pool import Pool, disconnect, find_pool, silent, skip
from trainer.models.probe import Anatomy, width
from trainer.spec import Output


def alone(outputs: Sequence[Output]) -> bool:
    """Whether it is the only head of a network, which has no name."""
    return len(outputs) == 1 and not outputs[0].name


def module_name(output: str) -> str:
    """The name of a head as a part of parameters' names: letters, digits and `_`, and nothing that a module has already."""
    name = re.sub(r"\W", "_", output)
    name = f"_{name}" if name[:1].isdigit() else name
    return f"{name}_" if keyword.iskeyword(name) or hasattr(nn.Module(), name) else name


def check(outputs: Sequence[Output], adapt: Adapt) -> None:
    """Raise UserError for heads that cannot be told apart, and for settings of heads that there are not."""
    names = [output.name for output in outputs]
    for output in outputs:
        called = f"the head '{output.name}'" if output.name else "the head"
        if len(outputs) > 1 and not output.name:
            raise UserError(f"one of the {len(outputs)} heads of the network has no name; give each of its outputs one")
        if not output.labels:
            raise UserError(f"{called} has no labels, so there is nothing for it to give")
        twice = next((label for label in output.labels if output.labels.count(label) > 1), None)
        if twice is not None:
            raise UserError(f"{called} has the label '{twice}' twice; each of its labels needs its own")
    for index, name in enumerate(names):
        other = next((n for n in names[:index] if module_name(n) == module_name(name)), None)
        if other is not None:
            same = "of the same name" if other == name else f"'{other}', both '{module_name(name)}' in the network"
            raise UserError(f"the head '{name}' cannot be told from another, {same}; rename one of the outputs")
    if alone(outputs):
        if adapt.heads:
            raise UserError(
                f"model.adapt.heads has '{next(iter(adapt.heads))}', and the network has one head; write its settings below "
                "model.adapt itself"
            )
        return
    for name in adapt.heads:
        if name not in names:
            raise UserError(f"model.adapt.heads: the task has no head '{name}'{nearest(name, names)}; it has {', '.join(names)}")
    for key in ("like", "rename", "take"):
        if getattr(adapt, key):
            raise UserError(f"model.adapt.{key}: of {len(names)} heads; say of which: model.adapt.heads.{names[0]}.{key}")


@dataclass(frozen=True)
class _Site:
    """The place of an output layer: what stands there, the shape of what it is given, and what is to stand there.

    `conv`: the arguments of the convolution that it is; none for a linear layer.
    """

    name: str
    old: nn.Module
    given: torch.Size
    conv: dict[str, Any] | None
    layers: list[Layers]

    @property
    def features(self) -> int:
        if isinstance(self.old, nn.Linear):
            return self.old.in_features
        if isinstance(self.old, nn.Conv2d):
            return self.old.in_channels
        return self.given[1] if self.conv is not None else self.given[-1]

    @property
    def looking(self) -> list[Attention]:
        """The old heads that attend to something else than what they are given."""
        return [m for m in self.old.modules() if isinstance(m, Attention) and m.pool]

    @property
    def dims(self) -> int:
        """How many dimensions the answer has."""
        return 1 + len(self.looking[0].shape) if self.looking else len(self.given)

    @property
    def bias(self) -> bool:
        return not isinstance(self.old, nn.Linear | nn.Conv2d) or self.old.bias is not None


def place(
    network: nn.Module, source: str, anatomy: Anatomy, outputs: Sequence[Output], adapt: Adapt, size: int, *, sized: bool
) -> list[str]:
    """Put the heads in; returns the names of the parameters that are new by that.

    `sized`: the network was built with as many outputs as there are labels, so that a plain output layer stays. What a network of
    one's own, or of a run, has already, stays as well, unless `head: new`. Auxiliary heads are linear. Raises UserError.
    """
    ones = [adapt.of(output.name) for output in outputs]
    sites: list[_Site] = []
    made: list[str] = []
    for name in anatomy.head:
        old = network.get_submodule(name)
        wanted = [one.layers or _like(old, output, one.take) for one, output in zip(ones, outputs, strict=True)]
        wanted = [LinearHead() for _ in wanted] if name in anatomy.auxiliary else wanted
        site = _Site(name, old, anatomy.given.get(name, torch.Size()), _conv(old), wanted)
        if sized and alone(outputs) and isinstance(wanted[0], LinearHead):
            _begin(old, wanted[0])
            made += _parameters(name, old)
        elif sized or any(one.head == "new" for one in ones) or not _stands(site, outputs):
            kept = next((i for i, one in enumerate(ones) if one.head == "keep"), None)
            if kept is not None and not sized:
                wants = "" if alone(outputs) and isinstance(wanted[kept], LinearHead) else f" of {wanted[kept].kind} heads"
                raise UserError(
                    f"model.adapt.head: keep, but '{name}' of {source} has {_told(old)} and the task has "
                    f"{sum(len(output.labels) for output in outputs)} classes{wants}; write auto or new"
                )
            _check_site(site, source)
            sites.append(site)
    pools = [_pools(network, source, anatomy, site, size) for site in sites]
    attentive = any(pool is not None for found in pools for pool in found)
    silent_before = silent(network, anatomy.channels, size) if attentive else set()
    for site, found in zip(sites, pools, strict=True):
        made += _fill(network, site, outputs, found)
    placed = [network.get_submodule(site.name) for site in sites]
    heads = [m for new in placed for m in new.modules() if isinstance(m, Attention) and m.pool]
    if heads:
        for head in heads:
            head.connect(network)
        skip(network, silent_before, anatomy.channels, size, heads)
    return made


def _fill(network: nn.Module, site: _Site, outputs: Sequence[Output], pools: list[Pool | None]) -> list[str]:
    """Put new heads into a place; the names of their parameters."""
    heads = [
        _head(site, len(output.labels), layers, pool) for output, layers, pool in zip(outputs, site.layers, pools, strict=True)
    ]
    for head, layers in zip(heads, site.layers, strict=True):
        head.to(next(site.old.parameters()))
        _begin(head, layers)
    names = [module_name(output.name) for output in outputs]
    new = heads[0] if alone(outputs) else Heads(dict(zip(names, heads, strict=True)), -1 if site.conv is None else 1)
    before = width(site.old)
    disconnect(network, site.old)
    parent, _, child = site.name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)
    for module in network.modules():  # some networks use the number in their forward pass
        if getattr(module, "num_classes", None) == before:
            setattr(module, "num_classes", width(new))  # noqa: B010 (nn.Module types assigned attributes as tensors)
    return _parameters(site.name, new)


def _head(site: _Site, labels: int, layers: Layers, pool: Pool | None) -> nn.Module:
    if isinstance(layers, MlpHead):
        hidden = layers.width or site.features
        return Mlp(
            site.features, labels, hidden, layers.depth, layers.activation, layers.norm, layers.dropout, site.bias, site.conv
        )
    if isinstance(layers, AttentionHead):
        assert pool is not None
        heads = layers.num_heads or _divisors(pool.width, max(1, round(pool.width / 64)))[0]
        return Attention(
            pool.width, labels, heads, layers.dropout, site.bias, pool.module, pool.before, pool.first, site.dims,
            site.conv is not None,
        )  # fmt: skip
    if site.conv is None:
        return nn.Linear(site.features, labels, site.bias)
    return nn.Conv2d(site.features, labels, **site.conv, bias=site.bias)


def _pools(network: nn.Module, source: str, anatomy: Anatomy, site: _Site, size: int) -> list[Pool | None]:
    """What each head of a place attends to; none for heads that do not."""
    found: list[Pool | None] = []
    for layers in site.layers:
        found.append(_pool_of(network, source, anatomy, site, layers, size) if isinstance(layers, AttentionHead) else None)
    return found


def _pool_of(network: nn.Module, source: str, anatomy: Anatomy, site: _Site, layers: AttentionHead, size: int) -> Pool:
    before = next((m for m in site.old.modules() if isinstance(m, Attention)), None)
    if before is not None and layers.pool_from is None:
        pool = Pool(before.pool, before.before, before.first, before.norm.normalized_shape[0])
    else:
        pool = find_pool(network, source, site.name, site.features, anatomy.channels, size, layers.pool_from)
    if layers.num_heads is not None and pool.width % layers.num_heads:
        near = _divisors(pool.width, layers.num_heads)
        raise UserError(
            f"model.adapt.layers.num_heads: {layers.num_heads} does not divide the {pool.width} channels that are attended to; "
            f"write {' or '.join(map(str, sorted(near[:2])))}"
        )
    return pool


def _divisors(number: int, near: int) -> list[int]:
    """The divisors of a number, the nearest first (of two as near, the smaller)."""
    return sorted((d for d in range(1, min(number, 256) + 1) if number % d == 0), key=lambda d: (abs(d - near), d))


def _check_site(site: _Site, source: str) -> None:
    """Raise UserError where no other head can stand."""
    old = site.old
    if not isinstance(old, nn.Linear | nn.Conv2d | Heads | Mlp | Attention) or not site.given:
        raise UserError(
            f"{source}: its output layer '{site.name}' is a {type(old).__name__}, not a linear layer or convolution that "
            "is called; only one linear head can be there"
        )
    if isinstance(old, nn.Conv2d) and old.groups != 1:
        raise UserError(f"the output layer '{site.name}' is a grouped convolution and cannot be given other classes")
    others = [layers.kind for layers in site.layers if not isinstance(layers, AttentionHead)]
    if others and len(site.given) != site.dims:
        raise UserError(
            f"{source}: its trunk lacks what stands between its pooling and a {others[0]} head, since '{site.name}' attends to "
            f"'{site.looking[0].pool}'; write model.adapt.layers: {{kind: attention}}, or begin from what that run began with"
        )


def _conv(module: nn.Module) -> dict[str, Any] | None:
    """The arguments of the convolution that stands in a place, or that a head of graft's was put in for."""
    if isinstance(module, Heads):
        return _conv(next(module.children()))
    if isinstance(module, Attention):
        return {"kernel_size": (1, 1)} if module.arguments["conv"] else None
    if isinstance(module, Mlp):
        return cast("dict[str, Any] | None", module.arguments["conv"])
    if not isinstance(module, nn.Conv2d):
        return None
    given = {key: getattr(module, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    plain = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "padding_mode": "zeros"}
    return {key: value for key, value in given.items() if value != plain.get(key)}


def _like(old: nn.Module, output: Output, take: str | None) -> Layers:
    """The layers that a head has already: of several, the one of the same name."""
    if isinstance(old, Heads):
        several = dict(old.named_children())
        found = several.get(module_name(take or output.name)) if take or output.name else None
        return LinearHead() if found is None else _like(found, output, None)
    if isinstance(old, Mlp):
        own = old.arguments
        return MlpHead(**{key: own[key] for key in ("width", "depth", "activation", "norm", "dropout")})
    if isinstance(old, Attention):
        return AttentionHead(num_heads=old.arguments["num_heads"], dropout=old.arguments["dropout"])
    return LinearHead()


def _stands(site: _Site, outputs: Sequence[Output]) -> bool:
    """Whether the heads that are wanted stand there already."""
    old = list(site.old.named_children()) if isinstance(site.old, Heads) else [("", site.old)]
    wanted = [("" if alone(outputs) else module_name(output.name), len(output.labels)) for output in outputs]
    if [(name, width(head)) for name, head in old if isinstance(head, nn.Linear | nn.Conv2d | Mlp | Attention)] != wanted:
        return False
    return all(_same(head, layers, site) for (_, head), layers in zip(old, site.layers, strict=True))


def _same(head: nn.Module, layers: Layers, site: _Site) -> bool:
    """Whether a head is made of such layers."""
    is_ = _like(head, Output("", ()), None)
    if isinstance(layers, MlpHead) and layers.width is None:
        layers = layers.model_copy(update={"width": site.features})
    if isinstance(layers, AttentionHead) and isinstance(is_, AttentionHead) and isinstance(head, Attention):
        if layers.pool_from is not None and (layers.pool_from, False) != (head.pool, head.before):
            return False
        layers = layers.model_copy(update={"num_heads": layers.num_heads or is_.num_heads, "pool_from": None})
    return layers.model_copy(update={"begin": "random"}) == is_


def _begin(head: nn.Module, layers: Layers) -> None:
    """How the output layer of a new head begins, where it is not drawn at random."""
    if layers.begin == "zero":
        with torch.no_grad():
            for parameter in last_layers(head)[0].parameters():
                parameter.zero_()


def _parameters(name: str, module: nn.Module) -> list[str]:
    return [f"{name}.{inner}" for inner, _ in module.named_parameters()]


def _told(module: nn.Module) -> str:
    if isinstance(module, Heads):
        return "the heads " + ", ".join(f"{name} ({width(head)})" for name, head in module.named_children())
    kind = " of mlp" if isinstance(module, Mlp) else " of attention" if isinstance(module, Attention) else ""
    return f"{width(module)} outputs{kind}"
