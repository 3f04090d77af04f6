"""The tree of what learns, drawn for people. Imports rich, so imported where something is shown."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from launcher.python import environment, trainer_command
from trainer.config import GraftError

_DEPTH = 6
_WIDE = 24  # children of a node that are shown


def learnt_tree(target: Path, overrides: list[str], world: int, cards: Sequence[str]) -> dict[str, Any]:
    """Ask the trainer, which builds the network without reading weights, what learns and what memory each of `world` ranks needs.

    Raises GraftError with its words.
    """
    return ask("describe", str(target), *overrides, f"--world={world}", *(f"--card={card}" for card in cards))


def ask(*words: str) -> dict[str, Any]:
    """What a command of the trainer answers. Raises GraftError with its words."""
    done = subprocess.run(trainer_command(*words), env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.removeprefix("graft: ") for line in done.stderr.splitlines() if line.strip()]
        error = GraftError("\n".join(lines) or "the network could not be built")
        error.code = done.returncode
        raise error
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def show(found: dict[str, Any], lr: float) -> None:
    """Print the tree, then counts and bytes."""
    root = found["tree"]
    tree = Tree(_label(root, lr))
    _grow(tree, root, lr, 1)
    Console(highlight=False).print(tree)
    total, learning, sizes = found["parameters"], found["learning"], found["bytes"]
    optimizer = f", optimizer {size(sizes['optimizer'])}" if sizes["optimizer"] is not None else ""
    print(f"{learning:,} of {total:,} parameters learn ({learning / max(1, total):.2%})")
    print(f"bytes at 32 bits: weights {size(sizes['weights'])}, gradients {size(sizes['gradients'])}{optimizer}")
    kept = found["features"]
    where = f"; {size(kept['bytes'])} in {kept['folder']}" if kept["kept"] else ""
    print(f"features of the frozen first part: {kept['text']}{where}")
    if buckets := found.get("buckets"):
        print(f"buckets (width x height): {', '.join(f'{width} x {height}' for height, width in buckets)}")


def _grow(tree: Tree, node: dict[str, Any], lr: float, depth: int) -> None:
    children = node["children"] if depth < _DEPTH else []
    for child in children[:_WIDE]:
        _grow(tree.add(_label(child, lr)), child, lr, depth + 1)
    if len(children) > _WIDE:
        tree.add(Text(f"… {len(children) - _WIDE} more", style="dim"))


def _label(node: dict[str, Any], lr: float) -> Text:
    states = [state for state in node["states"] if state["learns"]]
    text = Text(node["name"], style="bold" if states else "dim")
    text.append(f"  {node['parameters']:,}", style="dim")
    if not states:
        text.append("  frozen", style="dim")
    elif len(node["states"]) == 1:
        state = states[0]
        text.append(f"  lr {lr * state['rate']:.3g}", style="green")
        if state["start"]:
            text.append(f"  from {state['start']:,} samples", style="yellow")
    else:
        text.append(f"  {node['learning']:,} learn", style="green")
    return text


def size(count: int) -> str:
    """Bytes, for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"
