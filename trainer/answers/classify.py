"""Classes with their confidence."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.answers import Example, Json, Line


class Teller:
    """Tells which class each image was taken for."""

    def __init__(self, details: Json) -> None:
        self._classes = [str(name) for name in details["classes"]]

    def lines(self, answer: Json) -> list[Line]:
        right = answer["truth"] == answer["predicted"]
        said = Line(f"{self._classes[answer['predicted']][:14]} {answer['confidence']:.0%}", right)
        return [said] if right else [said, Line(f"is {self._classes[answer['truth']]}")]

    def columns(self) -> list[str]:
        return ["truth", "predicted", "confidence"]

    def cells(self, answer: Json) -> list[str]:
        return [self._classes[answer["truth"]], self._classes[answer["predicted"]], f"{answer['confidence']:.6f}"]

    def examples(self, answers: Sequence[Json], count: int) -> list[Example]:
        """The most confident of either, spread over the classes: the best of each class before the second best of any."""
        found = []
        for correct, group in ((True, "Right"), (False, "Wrong, the most confident")):
            seen: dict[int, int] = {}
            ranked = []
            mine = [a for a in answers if (a["truth"] == a["predicted"]) is correct]
            for answer in sorted(mine, key=lambda a: (-a["confidence"], a["index"])):
                turn = seen[answer["truth"]] = seen.get(answer["truth"], 0) + 1
                ranked.append((turn, -answer["confidence"], answer["index"], answer))
            for *_, a in sorted(ranked, key=lambda r: r[:3])[:count]:
                said, truth = self._classes[a["predicted"]], self._classes[a["truth"]]
                found.append(Example(a["index"], group, said, truth, correct, a["confidence"]))
        return found


def headings(rows: Sequence[Json]) -> list[str]:
    """The columns of a table of predictions."""
    return ["class", "probability", *(["then"] if any(len(row.get("top", ())) > 1 for row in rows) else [])]


def cells(row: Json) -> list[str]:
    """A row of it."""
    others = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in row["top"][1:])
    return [row["class"], f"{row['probability']:.1%}", others]


def said(row: Json) -> str:
    """A prediction in one cell."""
    return f"{row['class']} {row['probability']:.1%}"
