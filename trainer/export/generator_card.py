"""The model card of a generator: what it makes, with images, what it learnt from, what was measured, how to use it."""

from __future__ import annotations

from typing import Any

from trainer.data.pairs import way_of
from trainer.export.card import FIGURES, begun, cell, licence, measured, of_inputs, source_of, training
from trainer.restored import Restored
from trainer.tasks.base import Generates, Makes


def card(
    restored: Restored, code: str, manifest: dict[str, Any], summary: dict[str, Any], evaluation: dict[str, Any], *, shown: bool
) -> str:  # fmt: skip
    """README.md of an export; what the run did not measure is said to be missing."""
    run = restored.run
    of = "images of fixed seeds" if way_of(run) is None else "input, output, target"
    return "\n".join([
        f"---\nlicense: unknown\nlibrary_name: diffusers\npipeline_tag: {_tag(restored)}\n---\n",
        f"# {cell(run.name)}\n",
        what(restored),
        *([f"## What it makes\n\n![{of}](samples.png)\n\n{_shown(restored)}\n"] if shown else []),
        _use(code),
        measured(summary, evaluation), of_inputs(evaluation),
        training(run, manifest, summary),
        "## Limits\n\n- It makes pictures like those that it learnt from, and may repeat some of them; that was not measured.\n"
        f"{FIGURES}\n{licence(run)}",
    ])  # fmt: skip


def _tag(restored: Restored) -> str:
    assert isinstance(restored.task, Generates)
    if restored.task.generator.source:
        return "image-to-image"
    return "text-to-image" if restored.task.generator.text else "unconditional-image-generation"


def what(restored: Restored) -> str:
    """What network it is, and what it makes."""
    run, task = restored.run, restored.task
    assert isinstance(task, Makes)
    size = restored.spec.image_size
    kind = {1: "grey", 3: "RGB"}.get(restored.spec.in_channels, f"{restored.spec.in_channels}-channel")
    text, classes = task.generator.text, () if task.generator.text else task.generator.classes
    names = ", ".join(cell(name) for name in classes[:50]) + (f" and {len(classes) - 50} more" if len(classes) > 50 else "")
    way = way_of(run)
    if way is not None:
        return (
            f"A diffusion model that makes pictures of pictures: `{source_of(run)}`, {begun(run)}. Strategy: {run.strategy.kind}."
            f"\n\nIt makes {kind} pictures of {size} x {size} pixels of pictures of that size, and of noise. How the inputs of "
            f"its training came: {way.kind}.\n"
        )
    told = f", of one of {len(classes)} classes: {names}" if classes else ", of what a text says" if text else ""
    return (
        f"A generator of images: `{source_of(run)}`, {begun(run)}. Strategy: {run.strategy.kind}.\n\n"
        f"It makes {kind} pictures of {size} x {size} pixels{told}.\n"
    )


def _shown(restored: Restored) -> str:
    task = restored.task
    assert isinstance(task, Generates)
    if task.generator.source:
        return f"Validation pairs: input, output, target; {task.plan().steps} steps."
    plan, shown = task.plan(), [task.word(number) for number in task.shown()[:8]]
    columns = f" Columns: {', '.join(map(cell, shown))}." if any(shown) else ""
    return f"The first seeds, {plan.steps} steps, guidance {plan.guidance:g}; none was chosen by hand.{columns}"


def _use(code: str) -> str:
    own = (
        "`pipeline.py` in this folder is run for that: diffusers has no pipeline of its own for such a network.\n"
        if "trust_remote_code" in code
        else ""
    )
    return f"## How to use it\n\nWith diffusers, without graft; FOLDER is this folder:\n\n```python\n{code}```\n{own}"
