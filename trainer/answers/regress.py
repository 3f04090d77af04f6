"""Numbers."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.answers import Example, Json, Line

_LINES = 3  # values below a picture


def number(value: float | None) -> str:
    """Seven digits, as many as the numbers are read with; nothing for what is not known."""
    return "" if value is None else f"{value:.7g}"


def short(value: float | None) -> str:
    """Four digits, for people."""
    return "?" if value is None else f"{value:.4g}"


class Teller:
    """Tells the numbers that were said of each image beside those that are known."""

    def __init__(self, details: Json) -> None:
        self._names = [str(name) for name in details["values"]]
        self._std = [float(value["std"]) or 1.0 for value in details["per_value"]]

    def _texts(self, answer: Json, key: str) -> list[str]:
        texts = [short(value) for value in answer[key]]
        return texts if len(texts) == 1 else [f"{name} {text}" for name, text in zip(self._names, texts, strict=True)]

    def lines(self, answer: Json) -> list[Line]:
        pairs = zip(self._texts(answer, "predicted"), answer["truth"], strict=True)
        return [Line(said if truth is None else f"{said} (is {short(truth)})") for said, truth in pairs][:_LINES]

    def columns(self) -> list[str]:
        return [column for name in self._names for column in (name, f"{name} predicted")]

    def cells(self, answer: Json) -> list[str]:
        pairs = zip(answer["truth"], answer["predicted"], strict=True)
        return [number(value) for pair in pairs for value in pair]

    def _off(self, answer: Json) -> float | None:
        """The mean error over the known values, in deviations of the training data."""
        parts = zip(answer["truth"], answer["predicted"], self._std, strict=True)
        errors = [abs(said - truth) / std for truth, said, std in parts if truth is not None]
        return sum(errors) / len(errors) if errors else None

    def examples(self, answers: Sequence[Json], count: int) -> list[Example]:
        """The largest errors and the smallest."""
        off = [(error, a["index"], a) for a in answers if (error := self._off(a)) is not None]
        half = len(off) // 2
        largest = sorted(off, key=lambda r: (-r[0], r[1]))[: min(count, len(off) - half)]
        smallest = sorted(off, key=lambda r: (r[0], r[1]))[: min(count, half)]
        return [
            Example(index, group, ", ".join(self._texts(answer, "predicted")), ", ".join(self._texts(answer, "truth")), None)
            for group, ranked in (("Largest errors", largest), ("Smallest errors", smallest))
            for _, index, answer in ranked
        ]


def headings(rows: Sequence[Json]) -> list[str]:
    """The columns of a table of predictions."""
    return list(next((row["values"] for row in rows if "values" in row), {}))


def cells(row: Json) -> list[str]:
    """A row of it."""
    return [number(value) for value in row["values"].values()]


def said(row: Json) -> str:
    """A prediction in one cell."""
    values = row["values"]
    return ", ".join(number(v) if len(values) == 1 else f"{name} {number(v)}" for name, v in values.items())
