"""What an evaluation says of single samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload


class Answers(Sequence[dict[str, Any]]):
    """What was said of samples, and what is known of them: `make(row)` makes a row's answer when it is looked at.

    `indices` are the places of the samples in their listing, row by row.
    """

    def __init__(self, indices: Sequence[int], make: Callable[[int], dict[str, Any]]) -> None:
        self.indices, self._make = indices, make

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, row: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        place = range(len(self))[row]
        return {"index": self.indices[place], **self._make(place)}
