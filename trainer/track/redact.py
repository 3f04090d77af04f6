"""Keeps secrets of the environment out of what is sent elsewhere."""

from __future__ import annotations

import os
import re
from typing import Any

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
HIDDEN = "[hidden]"


def redact(value: Any) -> Any:
    """A copy of a JSON value in which the value of any environment variable with a secret's name is replaced, and any text under
    a key with a secret's name. Values shorter than 8 characters are left: they would match by chance."""
    secrets = sorted({v for k, v in os.environ.items() if _SECRET.search(k) and len(v) >= 8}, key=len, reverse=True)
    return _walk(value, secrets)


def _walk(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        hide = {k for k, v in value.items() if isinstance(v, str) and _SECRET.search(str(k))}
        return {k: HIDDEN if k in hide else _walk(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [_walk(v, secrets) for v in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
    return value
