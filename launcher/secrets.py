"""Secrets of the environment and of ~/.netrc: what is written for others to read must hold none of them."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path

NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8  # shorter values would be found by chance


def values(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The values of variables with a secret's name, by that name; paths of files (`…_KEY_FILE`) are no secrets.

    Of this process's own environment when none is given; then the keys in ~/.netrc too.
    """
    found = {}
    for name, value in (os.environ if environment is None else environment).items():
        if NAME.search(name) and len(value) >= _SHORTEST and not (value.startswith("/") and Path(value).exists()):
            found[name] = value
    if environment is None:
        found |= {f"HOME/.netrc ({host})": key for host, key in _netrc().items() if len(key) >= _SHORTEST}
    return found


def _netrc() -> dict[str, str]:
    """The keys in the user's own file, by host: a repository may hold that file, or a copy of it."""
    file = Path(os.environ.get("NETRC") or Path("~/.netrc").expanduser())
    try:
        return {host: key for host, (_, _, key) in netrc.netrc(str(file)).hosts.items() if key and host != "default"}
    except (OSError, ValueError, netrc.NetrcParseError):
        return {}


def held_in(text: str | bytes, secrets: Mapping[str, str]) -> str | None:
    """The name of a variable whose value stands in a text."""
    data = text if isinstance(text, bytes) else os.fsencode(text)
    return next((name for name, value in secrets.items() if os.fsencode(value) in data), None)
