"""Labels that go with each other."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.answers import Example, Json, Line

_NONE = "none"


class Teller:
    """Tells which labels each image was said to have; what is not known is neither right nor wrong."""

    def __init__(self, details: Json) -> None:
        self._labels = [str(name) for name in details["labels"]]

    def _names(self, places: Sequence[int], mark: str = ", ") -> str:
        return mark.join(self._labels[place] for place in places)

    def _right(self, answer: Json) -> bool | None:
        unknown = set(answer["unknown"])
        if len(unknown) == len(self._labels):
            return None
        return bool(set(answer["predicted"]) - unknown == set(answer["truth"]))

    def _off(self, answer: Json) -> float:
        """By how much the worst of the known answers is off."""
        truth, unknown = set(answer["truth"]), set(answer["unknown"])
        wrong = [abs((place in truth) - p) for place, p in enumerate(answer["probabilities"]) if place not in unknown]
        return max(wrong, default=0.0)

    def lines(self, answer: Json) -> list[Line]:
        right = self._right(answer)
        lines = [Line(self._names(answer["predicted"]) or _NONE, right)]
        if right is False:
            lines.append(Line(f"is {self._names(answer['truth']) or _NONE}"))
        return lines

    def columns(self) -> list[str]:
        return ["truth", "unknown", "predicted", *self._labels]

    def cells(self, answer: Json) -> list[str]:
        named = [self._names(answer[key], "|") for key in ("truth", "unknown", "predicted")]
        return [*named, *(f"{p:.6f}" for p in answer["probabilities"])]

    def examples(self, answers: Sequence[Json], count: int) -> list[Example]:
        """Those with something wrong, the furthest off; and those with nothing wrong, the surest."""
        found = []
        for correct, group in ((True, "Right, the surest"), (False, "Wrong, the furthest off")):
            mine = [(self._off(a), a["index"], a) for a in answers if self._right(a) is correct]
            ranked = sorted(mine, key=lambda r: (r[0] if correct else -r[0], r[1]))
            for _, index, answer in ranked[:count]:
                predicted, truth = (self._names(answer[key]) or _NONE for key in ("predicted", "truth"))
                found.append(Example(index, group, predicted, truth, correct))
        return found


def headings(rows: Sequence[Json]) -> list[str]:
    """The columns of a table of predictions."""
    del rows
    return ["labels", "not"]


def _ranked(row: Json) -> list[tuple[str, float]]:
    return sorted(row["probabilities"].items(), key=lambda item: -item[1])


def cells(row: Json) -> list[str]:
    """A row of it: the labels with their probabilities, then the likeliest of the others."""
    chosen = set(row["labels"])
    there = [f"{name} {p:.0%}" for name, p in _ranked(row) if name in chosen]
    others = [f"{name} {p:.0%}" for name, p in _ranked(row) if name not in chosen]
    return [", ".join(there) or _NONE, ", ".join(others[:4]) + (" …" if len(others) > 4 else "")]


def said(row: Json) -> str:
    """A prediction in one cell."""
    return cells(row)[0]
