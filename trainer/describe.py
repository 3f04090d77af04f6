"""What of a network learns, at which rate and from when, and what memory that takes, without reading any weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from trainer import priors
from trainer.config import Run
from trainer.config.arithmetic import micro_batches, rank_shares
from trainer.config.buckets import sizes
from trainer.config.footprint import CARDS, Card, fit
from trainer.config.optimizers import SGD
from trainer.config.parallel import kind_of
from trainer.features import room
from trainer.forecast import Forecast, NotForetoldError, prepare
from trainer.parts import Parts
from trainer.propose import propose
from trainer.sizes import normalises
from trainer.spec import ParamGroup

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


def describe(run: Run, *, world: int = 1, cards: Sequence[Card] = ()) -> dict[str, Any]:
    """Build a run without its weights, and say what learns and what memory each of `world` ranks needs. Raises UserError.

    `bytes` are those of 32-bit numbers: the weights, the gradients of what learns at most at a time, and the optimizer's state.
    `cards`: for these it is also worked out how the run would fit.
    """
    parts = prepare(run, world)
    found = {**summary(run, parts.phase.network, parts.groups), "features": features(parts)}
    if run.data.buckets is not None:
        found["buckets"] = sizes(run.data.buckets, parts.built.spec.image_size)
    return {**found, "memory": memory(parts, world, cards)}


def features(parts: Parts) -> dict[str, Any]:
    """What will be kept of a frozen first part, in words and in bytes, or why nothing is. The room is that of this machine."""
    run, found, val = parts.run, parts.choice, parts.splits.val
    beside = priors.count(parts)
    total = (found.views * (parts.epoch_samples + beside) + (0 if val is None else len(val.items))) * found.row
    short = "" if found.kept is None else room.lacks(run.data.cache, total, total)
    kept = found.kept is not None and not short
    text = str(found) if not short else f"not kept: {short}"
    return {
        "kept": kept,
        "text": text,
        "bytes": total if kept else 0,
        "folder": str(room.folder(run.data.cache)) if kept else None,
    }


def memory(parts: Parts, world: int, cards: Sequence[Card]) -> dict[str, Any]:
    """The most that each rank needs in a step, and whether it fits: `cards`, or where a GPU may be used, every card there is."""
    run = parts.run
    parallel = run.parallel
    gpu = run.parallel.device != "cpu" or bool(cards)
    share = max(rank_shares(run.train.global_batch, world))
    passes = micro_batches(share, run.train.micro_batch)
    try:
        forecast = Forecast(parts, gpu=gpu)
        found = forecast(passes[0], share)
        proposed = [propose(run, forecast, found, card, world, share).as_json() for card in cards]
    except NotForetoldError as problem:
        return {"foretold": False, "why": str(problem)}
    onto = cards or (CARDS.values() if gpu else ())
    return {
        "foretold": True, "gpu": gpu, "world": world, "kind": kind_of(parallel, world), "share": share,
        "accumulation": len(passes), "depends": run.train.micro_batch == "auto" and normalises(parts.phase.network),
        "rank": found.rank(parallel, world), "footprint": found.as_json(),
        "cards": [fit(found, card, parallel, world).as_json() for card in onto],
        "proposed": proposed,
    }  # fmt: skip


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
