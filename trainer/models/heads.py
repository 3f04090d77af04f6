"""What stands in the place of an output layer where one layer is not enough: several heads, hidden layers, attention.

These classes need torch alone, and an export carries their source as it stands here. `arguments` is what each was made with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Heads(nn.Module):
    """Heads on the same features, by name; their outputs stand side by side along `dim` in the order of the heads.

    One answer for all positions of a map (attention) counts for each of them where another head answers for each.
    """

    def __init__(self, heads: dict[str, nn.Module], dim: int = -1) -> None:
        super().__init__()
        for name, head in heads.items():
            self.add_module(name, head)
        self.dim = dim

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        answers = [head(features).movedim(self.dim, 1) for head in self.children()]
        where = max((answer.shape[2:] for answer in answers), key=lambda shape: shape.numel())
        return torch.cat([answer.expand(-1, -1, *where) for answer in answers], dim=1).movedim(1, self.dim)


class Mlp(nn.Module):
    """Hidden layers (linear, normalisation, activation, dropout), then the output layer `out`.

    `conv`: arguments of a convolution, where the first layer is one; the others are then convolutions of 1 x 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        depth: int,
        activation: str,
        norm: bool,
        dropout: float,
        bias: bool,
        conv: dict[str, Any] | None = None,
    ) -> None:
        arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        self.arguments: dict[str, Any] = arguments
        layers: list[nn.Module] = []
        for index in range(depth):
            before = width if index else inputs
            if conv is None:
                layers.append(nn.Linear(before, width))
            else:
                layers.append(nn.Conv2d(before, width, **(conv if index == 0 else {"kernel_size": 1})))
            if norm:
                layers.append(nn.LayerNorm(width) if conv is None else nn.GroupNorm(1, width))
            layers.append({"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}[activation]())
            layers.append(nn.Dropout(dropout))
        self.hidden = nn.Sequential(*layers)
        self.out = nn.Linear(width, outputs, bias) if conv is None else nn.Conv2d(width, outputs, 1, bias=bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(features))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """A learned query attends to all positions [n, p, width]; what it finds is normalised and goes through `out`.

    Pooling by multi-head attention, without the feed-forward part: Lee et al. 2019 ("Set Transformer"), section 3.2, with one
    seed; Zhai et al. 2022 ("Scaling Vision Transformers"), section 3.2. With one query, keys need not be made for every position:
    the query is taken through their weights instead, and the values are made of the weighted mean.

    `pool`: the module whose input (`before`) or output the positions are, empty: the head's own input. `first`: the positions
    come as [n, width, ...], else as [n, ..., width]. The answer has `dims` dimensions, of which all but two are 1, as the layer
    gave it that stood here: [n, outputs, 1, 1] for a convolution (`conv`), else [n, 1, outputs].
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        num_heads: int,
        dropout: float,
        bias: bool,
        pool: str,
        before: bool,
        first: bool,
        dims: int,
        conv: bool,
    ) -> None:
        arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        super().__init__()
        self.arguments: dict[str, Any] = arguments
        self.pool, self.before, self.first = pool, before, first
        ones = (1,) * (dims - 2)
        self.shape = (outputs, *ones) if conv else (*ones, outputs)
        # almost nothing at first: all positions count alike, which is the pooling that the trunk was trained with
        self.query = nn.Parameter(0.02 * torch.randn(num_heads, width // num_heads))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs, bias)
        self.positions = nn.Identity()  # is given what is attended to: there the network can be cut, whatever comes before
        self.seen: torch.Tensor | None = None

    def connect(self, network: nn.Module) -> None:
        """Look at what the network pools, from now on; a copy of the network looks at its own."""
        if self.pool and self.before:
            network.get_submodule(self.pool).register_forward_pre_hook(self.look_before, with_kwargs=True)
        elif self.pool:
            network.get_submodule(self.pool).register_forward_hook(self.look_after)

    def look_before(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.seen = next(value for value in (*given, *named.values()) if isinstance(value, torch.Tensor))

    def look_after(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        self.seen = output if isinstance(output, torch.Tensor) else output[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seen": None}  # of one pass, and no part of a copy

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.pool:
            seen, self.seen = self.seen, None
            if seen is None:
                raise RuntimeError(f"the head attends to what '{self.pool}' is given or gives, and that did not run before it")
            features = seen
        features = self.positions(features)
        tokens = features.flatten(2).transpose(1, 2) if self.first else features.flatten(1, -2)
        count, _, width = tokens.shape
        heads, each = self.query.shape
        asked = torch.bmm(self.query[:, None], self.key.weight.view(heads, each, width))[:, 0] / each**0.5  # [heads, width]
        shares = torch.softmax(tokens @ asked.T, dim=1)  # [n, p, heads]
        found = (shares.transpose(1, 2) @ tokens).transpose(0, 1)  # [heads, n, width]
        values = torch.bmm(found, self.value.weight.view(heads, each, width).transpose(1, 2))  # [heads, n, each]
        pooled = self.project(values.transpose(0, 1).reshape(count, width) + self.value.bias)
        return self.out(self.drop(self.norm(pooled))).reshape(count, *self.shape)  # type: ignore[no-any-return]


class Skipped(nn.Module):
    """In the place of a layer between the trunk and its head, where the head looks past it: nothing of what it gives counts."""

    def forward(self, features: Any, *rest: Any, **named: Any) -> Any:
        # not the features themselves, which a layer after it may change in place while the head still needs them
        return torch.zeros_like(features) if isinstance(features, torch.Tensor) else features


GRAFTED = (Heads, Mlp, Attention)


def last_layers(head: nn.Module) -> list[nn.Module]:
    """The layers that give what a head gives, in the order of the outputs: one for each of several heads."""
    if isinstance(head, Heads):
        return [layer for part in head.children() for layer in last_layers(part)]
    return [head.out] if isinstance(head, Mlp | Attention) else [head]
