"""The model card: what it is, what it learnt from, what was measured, how to use it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from trainer.answers.figures import Figures, figures_of
from trainer.config import Run
from trainer.export.words import about
from trainer.rundir.metric import is_share
from trainer.spec import InputSpec, Output


def card(
    run: Run,
    spec: InputSpec,
    outputs: tuple[Output, ...],
    manifest: dict[str, Any],
    summary: dict[str, Any],
    evaluation: dict[str, Any],
    code: str,
    form: str,
) -> str:
    """README.md of an export; what the run did not measure is said to be missing. `form`: whose format the files are in."""
    parts = [
        f"---\nlicense: unknown\nlibrary_name: pytorch\n{_tag(outputs)}---\n\n# {cell(run.name)}\n",
        _what(run, spec, outputs),
        _use(code, form),
        measured(summary, evaluation),
        training(run, manifest, summary),
        _limits(run, outputs),
    ]
    return "\n".join(parts)


def begun(run: Run) -> str:
    """What the weights were before the training."""
    weights = run.model.weights
    if weights == "none":
        return "trained with graft from random weights"
    return f"fine-tuned with graft from the weights {cell(PurePath(weights).name)}"


def licence(run: Run) -> str:
    """What binds the model, as far as graft knows."""
    start = (
        "The licence of the code applies to the architecture."
        if run.model.weights == "none"
        else f"It was begun from given weights ({cell(PurePath(run.model.weights).name)}); their licence is not known to graft "
        "and may bind this model."
    )
    return f"## Licence\n\nTo be filled in by whoever publishes this model. {start} The training data may set terms too.\n"


def cell(value: Any) -> str:
    """Text that means itself in Markdown, in a table too."""
    text = " ".join(str(value).split())
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return text


def _what(run: Run, spec: InputSpec, outputs: tuple[Output, ...]) -> str:
    kind = {1: "grey", 3: "RGB"}.get(spec.in_channels, f"{spec.in_channels}-channel")
    learnt = {"head": "Only its head learnt; the trunk is as it was.", "full": "All its parameters learnt."}
    named = "".join(f"- {cell(output.name)}: {_names(output)}\n" for output in outputs if output.name)
    what = "An image classifier" if all(output.kind == "class" for output in outputs) else "A network for images"
    return (
        f"{what}: `{source_of(run)}`, {begun(run)}. "
        f"{learnt.get(run.strategy.kind, f'Strategy: {run.strategy.kind}.')}\n\n"
        f"It takes {kind} pictures of {spec.image_size} x {spec.image_size} pixels and gives "
        + (f"several things of each:\n\n{named}" if named else f"{about(outputs)}: {_names(outputs[0])}.\n")
    )


def _names(output: Output) -> str:
    labels = output.labels
    return ", ".join(cell(name) for name in labels[:50]) + (f" and {len(labels) - 50} more" if len(labels) > 50 else "")


def source_of(run: Run) -> str:
    """The source without the folders of the machine it was trained on."""
    scheme, _, rest = run.model.source.partition(":")
    return f"{scheme}:{PurePath(rest).name}".replace("`", "")


_FORMS = {
    "timm": 'The files are in timm\'s format: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them.',
    "transformers": "The files are in transformers' format; `AutoModelForImageClassification.from_pretrained` loads them.",
    "diffusers": "The generator is in the format of diffusers, with the head beside it in `head.safetensors`.",
}


def _use(code: str, form: str) -> str:
    fence = "```" if "```" not in code else "````"
    library, comma, _ = form.partition(",")
    needs = "torch, torchvision, pillow and safetensors" + ("" if library == "torch" else f", and {library}")
    told = _FORMS.get(form, "")
    if comma:
        told = (
            f"{library} builds the trunk, and has no format for the head: the files are graft's own, `model.safetensors` by the "
            f"names of the network, and `predict.py` puts the head in, so {library} alone does not load them."
        )
    return (
        f"## How to use it\n\nWith {needs}, without graft: "
        "`python predict.py PICTURE …` in this folder. That file is:\n\n"
        f"{fence}python\n{code}{fence}\n" + (f"\n{told}\n" if told else "")
    )


def _number(key: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return "–" if value is None else cell(value)
    return f"{value:.2%}" if is_share(key) or key == "ap" else f"{value:.4g}"


def measured(summary: dict[str, Any], evaluation: dict[str, Any]) -> str:
    best = summary.get("best") or {}
    values = evaluation.get("metrics") or best.get("metrics") or summary.get("final") or {}
    values = {key.removeprefix("val/"): value for key, value in values.items() if not key.startswith("source/")}
    tables = [line for name, found in figures_of(evaluation).items() for line in _table(evaluation, name, *found)]
    if not tables and not values:
        return "## What was measured\n\nNothing: the run had no validation samples.\n"
    lines = ["## What was measured", ""]
    if values:
        lines += ["| measure | value |", "|---|---|"]
        lines += [f"| {cell(key)} | {_number(key, value)} |" for key, value in values.items()]
        lines.append("")
    return "\n".join([*lines, *tables])


def of_inputs(evaluation: dict[str, Any]) -> str:
    """What the inputs of pictures come to, taken for the outputs; nothing where there are none."""
    before, count = evaluation.get("input") or {}, evaluation.get("translated")
    if not before:
        return ""
    of = f"The figures of pictures are of {count:,} validation pairs. " if count is not None else ""
    return f"{of}The input itself, taken for the output: PSNR {before['psnr']:.4g}, SSIM {before['ssim']:.4g}.\n\n"


def _table(evaluation: dict[str, Any], name: str, figures: Figures, rows: list[dict[str, Any]]) -> list[str]:
    """The figures of every class, label or value of a head."""
    found = evaluation["heads"][name] if name else evaluation
    matrix = found.get("confusion") or []
    samples = int(found.get("samples") or sum(map(sum, matrix)))
    right = found.get("right", sum(row[i] for i, row in enumerate(matrix)) if matrix else None)
    judged = f", of which {right:,} were right" if right is not None else ", in the units of the data"
    at = f" of step {evaluation['step']}" if "step" in evaluation else ""
    of = f"{cell(name)}: the" if name else "The"
    lines = [f"{of} table below is the evaluation{at} on {samples:,} validation samples{judged}.", ""]
    lines += [f"| {figures.of} | {' | '.join(figures.columns.values())} | samples |", "|" + "---|" * (len(figures.columns) + 2)]
    for entry in rows:
        cells = " | ".join(_number(column, entry.get(column)) for column in figures.columns)
        lines.append(f"| {cell(entry.get('name'))} | {cells} | {entry.get('support')} |")
    return [*lines, ""]


def training(run: Run, manifest: dict[str, Any], summary: dict[str, Any]) -> str:
    rows: list[tuple[str, Any]] = [
        ("optimizer", f"{run.optimizer.kind}, learning rate {run.optimizer.lr:g}, schedule {run.schedule.kind}"),
        ("batch", run.train.global_batch),
        ("samples seen", summary.get("samples", "unknown")),
        ("steps", summary.get("step", "unknown")),
        ("precision", run.train.precision),
        ("seed", run.train.seed),
    ]
    parameters = summary.get("parameters") or {}
    if "learning" in parameters:
        rows.append(("parameters", f"{parameters['learning']:,} learnt, {parameters.get('frozen', 0):,} frozen"))
    for part, facts in (manifest.get("data") or {}).items():
        if isinstance(facts, dict):
            rows.append((f"{part} samples", facts.get("samples")))
            rows.append((f"{part} fingerprint", facts.get("fingerprint")))
    versions = manifest.get("versions") or {}
    if versions:
        rows.append(("versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
    if manifest.get("git"):
        rows.append(("git", manifest["git"]))
    lines = [f"| {cell(name)} | {cell(value)} |" for name, value in rows]
    return "\n".join(["## How it was trained", "", "| | |", "|---|---|", *lines, ""])


FIGURES = "- The figures hold for pictures like the validation samples; on others they were not measured.\n"
_WARNINGS = {
    "class": "- Every picture gets one of the {count} classes{of}, also one that shows none of them.\n",
    "labels": "- Only the {count} labels{of} are looked for.\n",
    "values": "- Every picture gets its numbers{of}, also one that they make no sense for.\n",
}


def _limits(run: Run, outputs: tuple[Output, ...]) -> str:
    return (
        "## Limits\n\n"
        + "".join(
            _WARNINGS[output.kind].format(count=len(output.labels), of=f" of {cell(output.name)}" if output.name else "")
            for output in outputs
        )
        + FIGURES
        + ("- The probabilities were not calibrated: a high one is no proof.\n" if _probable(outputs) else "")
        + f"\n{licence(run)}"
    )


def _tag(outputs: tuple[Output, ...]) -> str:
    return "pipeline_tag: image-classification\n" if _probable(outputs) else ""


def _probable(outputs: tuple[Output, ...]) -> bool:
    return any(output.kind != "values" for output in outputs)
