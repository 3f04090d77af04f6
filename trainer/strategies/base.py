"""What a strategy is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from trainer.config import UserError, nearest
from trainer.config.amounts import Amount
from trainer.strategies.blocks_of import Block, blocks_of


@dataclass(frozen=True)
class Learns:
    """A parameter that learns: `rate` is the factor on the learning rate, `start` how many samples come before."""

    rate: float = 1.0
    start: int = 0


@dataclass
class Graft:
    """A network to choose from.

    `head`: dotted names of the output modules; `fresh`: parameters without pretrained values; `samples(amount)`: an amount, or a
    share of the training, in samples.
    """

    network: nn.Module
    head: Sequence[str]
    fresh: Sequence[str]
    samples: Callable[[Amount | float], int]
    _blocks: list[Block] | None = field(default=None, repr=False)

    @property
    def blocks(self) -> list[Block]:
        """The trunk's blocks, from the input to the head."""
        if self._blocks is None:
            self._blocks = blocks_of(self.network, self.head)
        return self._blocks

    def new(self) -> dict[str, Learns]:
        """The head, and what has no pretrained values: it learns from the first step, whatever the strategy."""
        inside = {f"{name}.{inner}" for name in self.head for inner, _ in self.network.get_submodule(name).named_parameters()}
        return {name: Learns() for name, _ in self.network.named_parameters() if name in inside or name in set(self.fresh)}

    def last(self, count: int, key: str) -> list[Block]:
        """The last blocks of the trunk. Raises UserError when it has fewer."""
        if count > len(self.blocks):
            names = [block.name for block in self.blocks]
            shown = ", ".join(names if len(names) <= 8 else [*names[:3], "…", *names[-3:]])
            raise UserError(f"{key} is {count}, and the trunk has {len(names)} blocks: {shown}")
        return self.blocks[len(self.blocks) - count :]

    def decay(self, layer_decay: float | None) -> dict[str, float]:
        """The factor of each parameter of the trunk: `layer_decay` to the power of its block's distance from the head."""
        factor = 1.0 if layer_decay is None else layer_decay
        blocks = self.blocks if layer_decay is not None else []
        return {name: factor ** (len(blocks) - index) for index, block in enumerate(blocks) for name in block.parameters}


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a part means: the name itself, all below it, or those that a pattern with * or ? fits."""
    if any(mark in pattern for mark in "*?["):
        return [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
    return [name for name in names if name == pattern or name.startswith(f"{pattern}.")]


def rated(chosen: dict[str, Learns], rates: Mapping[str, float], graft: Graft) -> dict[str, Learns]:
    """Apply `strategy.rates`: the longest pattern that fits a parameter counts; 0 freezes it.

    Raises UserError for a pattern that fits nothing that learns.

    `stem` is the trunk's first block and `head` the output layers, where the network has no part of that name; `head.NAME` is one
    of several heads, or a part of a head, wherever it stands.
    """
    every = [name for name, _ in graft.network.named_parameters()]
    factors: dict[str, float] = {}
    for pattern, factor in sorted(rates.items(), key=lambda item: len(item[0])):
        found = matching(pattern, every)
        if not found and pattern == "stem":
            found = list(graft.blocks[0].parameters) if graft.blocks else []
        if not found and (pattern == "head" or pattern.startswith("head.")):
            found = [name for head in graft.head for name in matching(f"{head}{pattern.removeprefix('head')}", every)]
        if not found:
            raise UserError(f"strategy.rates: the network has no part '{pattern}'{nearest(pattern, parts(every))}")
        if not any(name in chosen for name in found):
            raise UserError(f"strategy.rates: '{pattern}' is frozen by the strategy; leave it out, or choose another strategy")
        factors |= dict.fromkeys(found, factor)
    result = {}
    for name, learns in chosen.items():
        rate = learns.rate * factors.get(name, 1.0)
        if rate > 0:
            result[name] = Learns(rate, learns.start)
    return result


def parts(names: Sequence[str]) -> list[str]:
    """All dotted prefixes of parameter names, shorter first: what a person may have meant."""
    found = {".".join(pieces[:end]) for pieces in (name.split(".") for name in names) for end in range(1, len(pieces) + 1)}
    return sorted(found, key=lambda part: (part.count("."), part))
