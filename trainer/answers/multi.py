"""Several things of an image, each told in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trainer.answers import Example, Json, Line, kind_of, module_of, teller

_FEWEST = 4  # examples of a group


class Teller:
    """Tells what each head says; a head that nothing is known for is left out."""

    def __init__(self, details: Json) -> None:
        self._heads = {str(name): teller(head) for name, head in details["heads"].items()}

    def lines(self, answer: Json) -> list[Line]:
        lines = []
        for name, head in self._heads.items():
            told = head.lines(answer["heads"][name]) if answer["heads"][name] is not None else []
            for place, line in enumerate(told):
                lines.append(Line(f"  {line.text}" if place else f"{name}: {line.text}", line.right))
        return lines

    def columns(self) -> list[str]:
        return [f"{name}: {column}" for name, head in self._heads.items() for column in head.columns()]

    def cells(self, answer: Json) -> list[str]:
        found: list[str] = []
        for name, head in self._heads.items():
            own = answer["heads"][name]
            found += [""] * len(head.columns()) if own is None else head.cells(own)
        return found

    def examples(self, answers: Sequence[Json], count: int) -> list[Example]:
        """Those of each head."""
        found = []
        for name, head in self._heads.items():
            own = [{**a["heads"][name], "index": a["index"]} for a in answers if a["heads"][name] is not None]
            for example in head.examples(own, max(_FEWEST, count // len(self._heads))):
                found.append(replace(example, group=f"{name}: {example.group}"))
        return found


def headings(rows: Sequence[Json]) -> list[str]:
    """The columns of a table of predictions: one a head."""
    return list(next((row["heads"] for row in rows if "heads" in row), {}))


def cells(row: Json) -> list[str]:
    """A row of it."""
    return [str(module_of(kind_of(head)).said(head)) for head in row["heads"].values()]


def said(row: Json) -> str:
    """A prediction in one cell."""
    return ", ".join(f"{name}: {text}" for name, text in zip(row["heads"], cells(row), strict=True))
