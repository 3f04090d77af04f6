"""A check: what was looked at, how it stands, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainer.config import GraftError

State = Literal["ok", "warning", "failed", "not checked"]
Place = Literal["login", "nodes"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor. `found` says what there is (or why it was not looked at), `advice` what to do about it."""

    name: str
    state: State
    found: str
    advice: str = ""
    place: Place = "login"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warning(name: str, found: str, advice: str) -> Check:
    return Check(name, "warning", found, advice)


def failed(name: str, found: str, advice: str) -> Check:
    return Check(name, "failed", found, advice)


def unchecked(name: str, why: str, advice: str = "") -> Check:
    return Check(name, "not checked", why, advice)


def guarded(name: str, checks: Iterable[Check], advice: str) -> Iterator[Check]:
    """The checks of a group; one that breaks off is a failed check of the group's name and not the end of the others."""
    try:
        yield from checks
    except GraftError as error:
        yield failed(name, str(error), advice)
    except (OSError, ValueError, KeyError, IndexError) as error:
        yield failed(name, f"{type(error).__name__}: {error}", advice)


def size(count: float) -> str:
    """Bytes for a person: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
