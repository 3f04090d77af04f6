"""What stands behind the question mark of a source."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl

from trainer.config.errors import UserError, nearest


def parse(scheme: str, rest: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(the part before it, the values by key). Raises UserError for an unknown key, one that repeats or has no value."""
    name, _, query = rest.partition("?")
    # jpg;png is one value: only & separates
    pairs = parse_qsl(query, keep_blank_values=True, separator="&")
    asked: dict[str, str] = {}
    for key, value in pairs:
        if key not in known:
            raise UserError(f"{scheme}:{rest}: unknown '{key}'{nearest(key, known)}")
        if key in asked:
            raise UserError(f"{scheme}:{rest}: '{key}' is given twice")
        if not value:
            raise UserError(f"{scheme}:{rest}: '{key}' has no value")
        asked[key] = value
    return name, asked
