"""Resamples what a checkpoint learnt of positions to images of another size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F

Grid = tuple[int, int]
_PREFIX = 16  # at most so many tokens stand before those of the image (class, distillation, registers)


def positions_of(
    name: str, table: torch.Tensor, shape: torch.Size, grids: Sequence[Grid] = (), old_grid: Grid | None = None
) -> tuple[torch.Tensor, str] | None:
    """A table of positions as the network wants it, and what was done; None where it is none, or cannot be told how it lies.

    - [1, tokens, width] and [tokens, width]: the grid is interpolated, tokens in front stay as they are;
    - [1, width, h, w], [1, h, w, width] and the same without the 1: the grid is interpolated;
    - relative biases [(2h-1)(2w-1), heads], with three more rows for a class token, or [heads, 2h-1, 2w-1]: see `_relative`;
    - biases of absolute distances, `attention_biases` [heads, h * w] (LeViT, TinyViT): the grid is interpolated.

    Grids are interpolated bicubically, with anti-aliasing where they shrink (Dosovitskiy et al. 2021, section 3.2). `grids`: the
    sizes of the network's maps, which tell a grid that is not square from its number of tokens; `old_grid`: that of the table,
    where it is known and not square. `name`: of the tensor, which must speak of positions unless it is [1, tokens, width].
    """
    leaf = name.rpartition(".")[2].lower()
    if "relative" in name.lower() or "rel_pos" in name.lower():
        return _relative(table, shape, grids, old_grid)
    if leaf == "attention_biases" and table.dim() == len(shape) == 2:
        found = _tokens(table.T, torch.Size((shape[1], shape[0])), (), None, 0)
        return None if found is None else (found[0].T, found[1].replace("position embeddings", "biases of distances"))
    said = "pos" in name.lower()
    if table.dim() == 3 and len(shape) == 3 and table.shape[0] == shape[0] == 1:
        found = _tokens(table[0], torch.Size(shape[1:]), grids, old_grid, _PREFIX if said else 1)
        return None if found is None else (found[0][None], found[1])
    if not said or table.dim() != len(shape):
        return None
    if table.dim() == 2:
        return _tokens(table, shape, grids, old_grid, _PREFIX)
    return _map(table, shape)


def _told(what: str, old: Grid, new: Grid) -> str:
    return f"{what} resampled from {old[0]} x {old[1]} to {new[0]} x {new[1]}"


def _bicubic(grid: torch.Tensor, size: Grid) -> torch.Tensor:
    """[width, h, w] -> [width, *size]."""
    with_batch = grid.float()[None]
    return F.interpolate(with_batch, size=size, mode="bicubic", antialias=True, align_corners=False)[0].to(grid.dtype)


def _tokens(
    table: torch.Tensor, shape: torch.Size, grids: Sequence[Grid], old_grid: Grid | None, prefix: int
) -> tuple[torch.Tensor, str] | None:
    if table.shape[1] != shape[1]:
        return None
    for extra, new in _layouts(shape[0], grids, prefix):
        old = _old(table.shape[0] - extra, new, old_grid)
        if old is not None:
            break
    else:
        return None
    grid = _bicubic(table[extra:].T.reshape(-1, *old), new)
    resampled = torch.cat([table[:extra], grid.flatten(1).T])
    return resampled, _told("position embeddings", old, new)


def _layouts(tokens: int, grids: Sequence[Grid], prefix: int) -> Iterator[tuple[int, Grid]]:
    """How many tokens, up to `prefix`, may stand before which grid: as the network's maps say, else before a square."""
    for rows, columns in grids:
        if 0 <= tokens - rows * columns <= prefix and rows * columns > 1:
            yield tokens - rows * columns, (rows, columns)
    for extra in (1, 0, *range(2, prefix + 1)):
        side = math.isqrt(max(0, tokens - extra))
        if side > 0 and side * side + extra == tokens and (side > 1 or not extra):
            yield extra, (side, side)


def _old(tokens: int, new: Grid, old_grid: Grid | None) -> Grid | None:
    """The grid of so many tokens: the one that is known, else of the same proportions as the new one, else square."""
    if old_grid is not None and old_grid[0] * old_grid[1] == tokens:
        return old_grid
    rows = math.isqrt(max(0, tokens * new[0] // new[1]))
    if rows > 0 and tokens % rows == 0 and rows * new[1] == tokens // rows * new[0]:
        return rows, tokens // rows
    side = math.isqrt(max(0, tokens))
    return (side, side) if side > 0 and side * side == tokens else None


def _map(table: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, str] | None:
    """A table that lies as a map: the two neighbouring dimensions that differ are its rows and columns."""
    differing = [axis for axis in range(len(shape)) if table.shape[axis] != shape[axis]]
    last = len(shape) - 1
    places = [(a, a + 1) for a in ((last - 1, last - 2) if len(shape) in (3, 4) else ()) if set(differing) <= {a, a + 1}]
    if not differing or not places or (len(shape) == 4 and (table.shape[0] != 1 or places[0][0] == 0)):
        return None
    rows, columns = places[0]
    old, new = (table.shape[rows], table.shape[columns]), (shape[rows], shape[columns])
    flat = table.movedim((rows, columns), (-2, -1))
    grid = _bicubic(flat.reshape(-1, *old), new).reshape(*flat.shape[:-2], *new)
    return grid.movedim((-2, -1), (rows, columns)), _told("position embeddings", old, new)


def _relative(
    table: torch.Tensor, shape: torch.Size, grids: Sequence[Grid], old_grid: Grid | None
) -> tuple[torch.Tensor, str] | None:
    """Biases of relative positions in a window, resampled as those of BEiT are (Bao et al. 2022, in their code, and in timm's).

    An offset keeps its bias where it is small, and the large ones are stretched: the old offsets are laid out over the new window
    at distances that grow by a constant factor, and interpolated linearly between.
    """
    if table.dim() == 3 and len(shape) == 3 and table.shape[0] == shape[0]:
        old, new = (table.shape[1], table.shape[2]), (shape[1], shape[2])
        return _laid_out(table, new), _told("relative positions", old, new)
    if table.dim() != 2 or len(shape) != 2 or table.shape[1] != shape[1]:
        return None
    for extra in (0, 3):  # a class token: to it, from it, and with itself
        for window in (*grids, _square(shape[0] - extra)):
            if window is None or (2 * window[0] - 1) * (2 * window[1] - 1) != shape[0] - extra:
                continue
            before = _window(table.shape[0] - extra, window, old_grid)
            if before is None:
                continue
            old, new = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (before, window))
            body = table[: table.shape[0] - extra]
            moved = _laid_out(body.T.reshape(-1, *old), new).flatten(1).T
            return torch.cat([moved, table[table.shape[0] - extra :]]), _told("relative positions", old, new)
    return None


def _square(offsets: int) -> Grid | None:
    side = math.isqrt(max(0, offsets))
    return ((side + 1) // 2, (side + 1) // 2) if side * side == offsets and side % 2 == 1 else None


def _window(offsets: int, new: Grid, old_grid: Grid | None) -> Grid | None:
    """The window of so many offsets: the one that is known, else of the same proportions as the new one, else square."""
    if old_grid is not None and (2 * old_grid[0] - 1) * (2 * old_grid[1] - 1) == offsets:
        return old_grid
    for rows in range(1, 1 + (offsets + 1) // 2):
        columns, rest = divmod(rows * new[1], new[0])
        if not rest and (2 * rows - 1) * (2 * columns - 1) == offsets:
            return rows, columns
    return _square(offsets)


def _laid_out(table: torch.Tensor, new: Grid) -> torch.Tensor:
    """[heads, 2h-1, 2w-1] -> [heads, *new]."""
    down, across = (_weights(old, side) for old, side in zip(table.shape[1:], new, strict=True))
    return (down @ table.double() @ across.T).to(table.dtype)


def _weights(old: int, new: int) -> torch.Tensor:
    """[new, old]: how much of each old offset a new one has; rows sum to 1."""
    if old == new:
        return torch.eye(new, dtype=torch.float64)
    low, high = 1.01, 1.5
    while high - low > 1e-6:  # the factor by which distances grow, so that the last offset meets the last
        factor = (low + high) / 2
        far = (1 - factor ** (old // 2)) / (1 - factor)
        low, high = (low, factor) if far > new // 2 else (factor, high)
    distances = [sum(factor**power for power in range(count)) for count in range(1, old // 2 + 1)]
    points = torch.tensor([-d for d in reversed(distances)] + [0.0] + distances, dtype=torch.float64)
    wanted = torch.arange(new, dtype=torch.float64) - new // 2
    right = torch.searchsorted(points, wanted).clamp(1, old - 1)
    share = ((wanted - points[right - 1]) / (points[right] - points[right - 1])).clamp(0, 1)
    weights = torch.zeros(new, old, dtype=torch.float64)
    weights[torch.arange(new), right] = share
    weights[torch.arange(new), right - 1] += 1 - share
    return weights
