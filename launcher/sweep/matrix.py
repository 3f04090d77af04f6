"""The members of a matrix: every source on every target with every strategy, and each source's network from scratch.

name: grafts
run: pets.yaml                                   what all have in common
sources:
  imagenet: {model.source: "torchvision:resnet18", model.weights: DEFAULT}
  digits:   {model.source: "run:digits"}
targets:
  pets:     {data.train: "folder:pets/train", data.val: "folder:pets/val"}
strategies:
  head:     {strategy: {kind: head}}
  full:     {strategy: {kind: full}, optimizer.lr: 1e-4}
scratch:    {optimizer.lr: 1e-2}                 or true; left out, nothing is trained from scratch
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.sweep.search import Settings
from trainer.config import UserError

SCRATCH = "scratch"
_FROM_SCRATCH: Settings = {"model.weights": "none", "strategy": {"kind": "full"}}
Axis = Mapping[str, Settings]


@dataclass(frozen=True)
class Cell:
    """One member: the names of what it is made of, and its settings."""

    source: str
    target: str
    strategy: str
    settings: Settings

    @property
    def labels(self) -> dict[str, str]:
        return {"source": self.source, "target": self.target, "strategy": self.strategy}


def cells(sources: Axis, targets: Axis, strategies: Axis, scratch: Settings | bool) -> list[Cell]:
    """The members of a matrix, target by target. From scratch every network is trained once a target, whatever the strategies.

    What stands further right wins: source, target, strategy, scratch. Sources that differ in their weights alone would be the
    same network from scratch; it is trained once, under the name of the first. Raises UserError.
    """
    if SCRATCH in strategies:
        raise UserError(f"strategies: '{SCRATCH}' is the name of the training from scratch (scratch: true); choose another")
    found: list[Cell] = []
    for target, data in targets.items():
        for source, model in sources.items():
            found += [Cell(source, target, name, merged(model, data, chosen)) for name, chosen in strategies.items()]
        if scratch is not False:
            given = {} if scratch is True else scratch
            seen: list[Settings] = []
            for source, model in sources.items():
                settings = merged(model, data, _FROM_SCRATCH, given)
                if settings not in seen:
                    seen.append(settings)
                    found.append(Cell(source, target, SCRATCH, settings))
    return found


def merged(*parts: Settings) -> Settings:
    """Settings over one another, the later in place of the earlier: a section replaces its keys, a key goes into its section."""
    found: Settings = {}
    for part in parts:
        for key, value in part.items():
            for inner in [k for k in found if k.startswith(f"{key}.")]:
                del found[inner]
            section = next((k for k in found if key.startswith(f"{k}.") and isinstance(found[k], dict)), None)
            if section is None:
                found[key] = copy.deepcopy(value)
                continue
            inside = found[section]
            *path, last = key.removeprefix(f"{section}.").split(".")
            for step in path:
                if not isinstance(inside.get(step), dict):
                    inside[step] = {}
                inside = inside[step]
            inside[last] = copy.deepcopy(value)
    return found
