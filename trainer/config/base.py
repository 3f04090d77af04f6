"""The base of every section, and the registries that find config classes by file name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the run file: unknown keys, wrong types, nan and infinity are refused; values cannot be changed afterwards."""

    # what checks a section is built when one is first made: most kinds are never used, and every command would wait for them
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


class Kind(Section):
    """A section that is chosen by its `kind`; a subclass fixes it with `kind: Literal["name"]`."""

    kind: str


@cache
def kinds(package: str) -> dict[str, type[Kind]]:
    """The config classes of a package by kind: each module `name.py` holds one class `Config` whose kind is `name`."""
    root = importlib.import_module(package)
    found: dict[str, type[Kind]] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(root.__path__)):
        found[module] = importlib.import_module(f"{package}.{module}").Config
    return found


def one_of(package: str) -> Any:
    """A pydantic type: any of a package's config classes, told apart by `kind`."""
    classes = tuple(kinds(package).values())
    if len(classes) == 1:
        return classes[0]
    return Annotated[Union[classes], Field(discriminator="kind")]  # noqa: UP007 (a tuple known only at run time)
