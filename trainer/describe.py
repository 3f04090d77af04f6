"""What of a network learns, at which rate and from when, without reading any weights: the tree that `graft plan` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from trainer import strategies
from trainer.build import WEIGHTS, chosen, samples_of
from trainer.config import Run
from trainer.config.arithmetic import total_steps
from trainer.config.optimizers import SGD
from trainer.config.sources import open_splits
from trainer.data.order import mix
from trainer.features import room
from trainer.features.choose import granted
from trainer.measuring import precision
from trainer.models import Built, build_model
from trainer.spec import ParamGroup
from trainer.tasks import build_task
from trainer.tasks.base import wanted

State = tuple[float, int] | None  # rate and start; none: frozen


@dataclass
class Node:
    """A module, or several that are alike: its parameters, and how those learn."""

    name: str
    parameters: int = 0
    learning: int = 0
    states: dict[State, int] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, path: Sequence[str], numbers: int, state: State) -> None:
        """Count a parameter here and below."""
        self.parameters += numbers
        self.learning += numbers if state is not None else 0
        self.states[state] = self.states.get(state, 0) + numbers
        if path:
            self.children.setdefault(path[0], Node(path[0])).add(path[1:], numbers, state)

    def as_json(self) -> dict[str, Any]:
        """A node whose parameters all learn alike has no children; equal siblings in a row are one."""
        states = [
            {"learns": False} if state is None else {"learns": True, "rate": state[0], "start": state[1]} for state in self.states
        ]
        children = [] if len(self.states) == 1 else _together([child.as_json() for child in self.children.values()])
        return {
            "name": self.name, "parameters": self.parameters, "learning": self.learning,
            "states": states, "children": children,
        }  # fmt: skip


def _together(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for node in nodes:
        before = found[-1] if found else None
        if before is not None and not node["children"] and not before["children"] and before["states"] == node["states"]:
            first = before["name"].partition(" … ")[0]
            count = {key: before[key] + node[key] for key in ("parameters", "learning")}
            found[-1] = {**before, **count, "name": f"{first} … {node['name']}"}
        else:
            found.append(node)
    return found


def describe(run: Run) -> dict[str, Any]:
    """Build the network of a run without its weights, and say what its strategy lets learn. Raises UserError.

    `bytes` are those of 32-bit numbers: the weights, the gradients of what learns at most at a time, and the optimizer's state.
    """
    splits = open_splits(run.data, run.train.seed, looks_at=run.task.looks_at)
    task = build_task(run.task, splits.train.facts)
    built = build_model(run.model, run.data.normalize, wanted(task), mix(run.train.seed, WEIGHTS), load_weights=False)
    network, samples = built.network, len(splits.train.items)
    steps = total_steps(run.train, samples)
    strategies.inject(run.strategy, network, built.head, built.fresh)
    counted = partial(samples_of, run, steps, samples)
    groups = strategies.apply(run.strategy, network, built.head, built.fresh, counted)
    held = 0 if splits.val is None else len(splits.val.items)
    return {**summary(run, network, groups), "features": features(run, built, groups, steps, samples, held)}


def features(run: Run, built: Built, groups: Sequence[ParamGroup], steps: int, samples: int, held: int) -> dict[str, Any]:
    """What will be kept of a frozen first part, in words and in bytes, or why nothing is; `held`: validation samples.

    Raises UserError where features are asked for and cannot be kept. The room is that of this machine.
    """
    cpu = torch.device("cpu")
    autocast = partial(precision, run.train.precision, cpu)
    found = granted(run, chosen(run, built, groups, steps, samples, autocast, cpu, run.parallel.kind))
    total = (found.views * samples + held) * found.row
    short = "" if found.cut is None else room.lacks(run.data.cache, total, total)
    kept = found.cut is not None and not short
    text = str(found) if not short else f"not kept: {short}"
    return {
        "kept": kept,
        "text": text,
        "bytes": total if kept else 0,
        "folder": str(room.folder(run.data.cache)) if kept else None,
    }


def summary(run: Run, network: nn.Module, groups: Sequence[ParamGroup]) -> dict[str, Any]:
    """The tree, the groups and the bytes, as JSON."""
    states: dict[str, State] = {name: (group.rate, group.start) for group in groups for name, _ in group.parameters}
    root = Node(run.model.source)
    for name, parameter in network.named_parameters():
        root.add(name.split(".")[:-1], parameter.numel(), states.get(name))
    learning = sum(p.numel() for group in groups for _, p in group.parameters)
    momentum = isinstance(run.optimizer, SGD) and run.optimizer.momentum > 0
    kept = {"sgd": int(momentum), "adam": 2, "adamw": 2}.get(run.optimizer.kind)
    optimizer = None if kept is None else 4 * kept * learning
    return {
        "parameters": root.parameters, "learning": learning,
        "bytes": {"weights": 4 * root.parameters, "gradients": 4 * learning, "optimizer": optimizer},
        "groups": [
            {"rate": group.rate, "start": group.start, "parameters": sum(p.numel() for _, p in group.parameters)}
            for group in groups
        ],
        "tree": root.as_json(),
    }  # fmt: skip
