"""The charts of several losses: each by itself, and what it weighs."""

from __future__ import annotations

from trainer.report.read import View
from trainer.report.svg import Series


def parts(view: View, kind: str) -> list[Series]:
    """The curves of `loss/NAME` or `weight/NAME`, where there are several losses."""
    names = dict.fromkeys(key for point in view.points for key in point if key.startswith(f"{kind}/"))
    if len(names) < 2:
        return []
    return [Series(key.partition("/")[2], *view.series(key), number) for number, key in enumerate(names)]
