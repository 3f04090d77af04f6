"""The checks as lines for a person. Imports rich, so imported where something is shown."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from launcher.doctor.check import Check, Place, State

_MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", "green"), "warning": ("warning", "yellow"), "failed": ("failed", "bold red"),
    "not checked": ("not checked", "cyan"),
}  # fmt: skip
_PLACES: dict[Place, str] = {"login": "login node", "nodes": "compute nodes"}
_STATE, _NAME = 13, 24  # columns


class Screen:
    """Shows checks as they come."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._place: Place | None = None

    def show(self, check: Check) -> None:
        """One line, and one for what to do."""
        if check.place != self._place:
            self._place = check.place
            self._console.print(Text(_PLACES[check.place], style="bold"))
        word, style = _MARKS[check.state]
        self._line(Text.assemble((f"{word:<{_STATE}}", style), f"{check.name:<{_NAME}} {check.found}"))
        if check.advice:
            self._line(Text.assemble(" " * _STATE, ("-> ", style), check.advice))

    def _line(self, text: Text) -> None:
        self._console.print(Text("  ") + text, soft_wrap=True)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Callable[[str], None]]:
        """While it looks: a spinner that says what is waited for; only on a terminal."""
        with self._console.status("looking") as status:
            yield status.update if self._console.is_terminal else (lambda text: None)

    def end(self, checks: Sequence[Check]) -> None:
        """How many of each, and what that means."""
        counts = Counter(check.state for check in checks)
        said = ", ".join(f"{counts[state]} {state}" for state in _MARKS if counts[state])
        if counts["failed"]:
            verdict, style = "mend what failed, then run graft doctor again", "bold red"
        elif counts["not checked"]:
            verdict, style = "nothing failed, but not all was looked at", "yellow"
        else:
            verdict, style = "runs can be submitted here", "bold green"
        self._console.print(Text.assemble((said, "bold"), ": ", (verdict, style)), soft_wrap=True)
