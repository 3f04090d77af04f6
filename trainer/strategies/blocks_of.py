"""The order of a trunk's blocks, from its input to its head, found in how its modules stand in each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """A block: the name of its first module, and the full names of its parameters."""

    name: str
    parameters: tuple[str, ...]


def blocks_of(network: nn.Module, head: Sequence[str]) -> list[Block]:
    """The blocks of the trunk in the order of the network's definition; every parameter outside the head is in one of them.

    A block is what a list of like modules repeats: a residual unit, a transformer layer; where nothing repeats (VGG), a
    convolution or linear layer with its normalisation. What stands directly in a module around blocks (class token, position
    table) belongs to the first of them; normalisation alone belongs to the block before it.
    """
    spots = _expand(network, "", set(head))
    while len(spots) == 1 and len(_children(network.get_submodule(spots[0][0]), spots[0][0], set(head))) > 1:
        spots = _forced(network.get_submodule(spots[0][0]), spots[0][0], set(head))
    owned: list[tuple[str, list[str]]] = []
    taken: set[str] = set()
    in_head = {
        f"{name}.{inner}" for name in head for inner, _ in network.get_submodule(name).named_parameters(remove_duplicate=False)
    }
    early: list[str] = []
    for name, whole in spots:
        module = network.get_submodule(name)
        named = module.named_parameters() if whole else module.named_parameters(recurse=False)
        mine = [_join(name, inner) for inner, _ in named]
        mine = [full for full in mine if full not in in_head and full not in taken]
        taken.update(mine)
        if not mine:
            continue
        if not whole and not owned:
            early += mine
        elif not whole or (owned and not _weighted(module)):
            owned[-1][1].extend(mine)
        else:
            owned.append((name, [*early, *mine]))
            early = []
    if early:
        owned.append(("", early))
    rest = [name for name, _ in network.named_parameters() if name not in taken and name not in in_head]
    if rest and owned:
        owned[0][1].extend(rest)
    elif rest:
        owned.append((rest[0].rpartition(".")[0], rest))
    return [Block(name or names[0], tuple(names)) for name, names in owned]


Spots = list[tuple[str, bool]]  # names in order; true: the whole module, false: only what stands directly in it


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _children(module: nn.Module, name: str, head: set[str]) -> list[tuple[str, nn.Module]]:
    """The children that have parameters, without the output layers."""
    found = [(_join(name, key), child) for key, child in module.named_children()]
    return [(full, child) for full, child in found if full not in head and any(True for _ in child.parameters())]


def _weighted(module: nn.Module) -> int:
    """How many layers of the module hold weights of more than one dimension."""
    return sum(any(p.dim() > 1 for p in m.parameters(recurse=False)) for m in module.modules())


def _is_layer(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _ladder(module: nn.Module) -> bool:
    """Whether it is a list of like modules that are more than a layer each."""
    if not isinstance(module, _CONTAINERS):
        return False
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    if not children:
        return False
    if all(_is_layer(child) for child in children):
        return False
    deep = [child for child in children if _weighted(child) > 1]
    return 2 * len(deep) >= len(children) or any(_ladder(child) for child in children)


def _holds(module: nn.Module) -> bool:
    """Whether most of its parameters stand in ladders somewhere inside: a stage or an encoder, not a block."""
    total = sum(p.numel() for p in module.parameters())
    found = 0
    queue = list(module.children())
    while queue:
        child = queue.pop()
        if _ladder(child):
            found += sum(p.numel() for p in child.parameters())
        else:
            queue += list(child.children())
    return 2 * found >= total > 0


def _expand(module: nn.Module, name: str, head: set[str]) -> Spots:
    if name == "" or _ladder(module) or (not _is_layer(module) and _holds(module)):
        return _forced(module, name, head)
    exact = type(module) in _CONTAINERS
    children = _children(module, name, head)
    if exact and children and all(_is_layer(child) for _, child in children) and _weighted(module) > 1:
        return [(full, True) for full, _ in children]
    if any(full == name or full.startswith(f"{name}.") for full in head):  # a classifier around the output layer
        return _forced(module, name, head)
    return [(name, True)]


def _forced(module: nn.Module, name: str, head: set[str]) -> Spots:
    """What stands directly in the module, then its children, each expanded."""
    direct = any(True for _ in module.parameters(recurse=False))
    spots: Spots = [(name, False)] if direct else []
    for full, child in _children(module, name, head):
        spots += _expand(child, full, head)
    return spots
