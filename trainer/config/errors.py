"""Errors that are messages to a person: what was wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_REFUSED = 3
EXIT_REQUEUE = 75


class GraftError(Exception):
    """A failure that is explained in one message; anything else that is raised is a bug and shows a traceback."""

    code = EXIT_FAULT


class UserError(GraftError):
    """What the user gave is wrong: a run file, a path, a name. Exit code 2."""

    code = EXIT_USER


class RefusedError(GraftError):
    """What the user gave is right but must not start now: a folder in use, a changed configuration. Exit code 3."""

    code = EXIT_REFUSED


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of the known names, else the list of them when it is short, else nothing."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if not close:
        folded = {n.lower(): n for n in names}
        close = [folded[m] for m in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    if close:
        return "; did you mean " + " or ".join(repr(n) for n in close) + "?"
    if 0 < len(names) <= 12:
        return "; known: " + ", ".join(names)
    return ""
