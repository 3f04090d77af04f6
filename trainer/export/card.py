"""The model card: what it is, what it learnt from, what was measured, how to use it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from trainer.config import Run
from trainer.spec import InputSpec

_SHARES = ("accuracy", "top5", "f1", "precision", "recall")


def card(
    run: Run,
    spec: InputSpec,
    classes: tuple[str, ...],
    manifest: dict[str, Any],
    summary: dict[str, Any],
    evaluation: dict[str, Any],
    code: str,
    form: str,
) -> str:
    """README.md of an export; what the run did not measure is said to be missing. `form`: whose format the files are in."""
    parts = [
        f"---\nlicense: unknown\nlibrary_name: pytorch\npipeline_tag: image-classification\n---\n\n# {_cell(run.name)}\n",
        _what(run, spec, classes),
        _use(code, form),
        _measured(summary, evaluation),
        _training(run, manifest, summary),
        _limits(run, classes),
    ]
    return "\n".join(parts)


def _cell(value: Any) -> str:
    """Text that means itself in Markdown, in a table too."""
    text = " ".join(str(value).split())
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return text


def _what(run: Run, spec: InputSpec, classes: tuple[str, ...]) -> str:
    weights = run.model.weights
    given = f"fine-tuned with graft from the weights {_cell(PurePath(weights).name)}"
    made = "trained with graft from random weights" if weights == "none" else given
    kind = {1: "grey", 3: "RGB"}.get(spec.in_channels, f"{spec.in_channels}-channel")
    names = ", ".join(_cell(name) for name in classes[:50]) + (f" and {len(classes) - 50} more" if len(classes) > 50 else "")
    learnt = {"head": "Only its head learnt; the trunk is as it was.", "full": "All its parameters learnt."}
    return (
        f"An image classifier: `{_source(run)}`, {made}. "
        f"{learnt.get(run.strategy.kind, f'Strategy: {run.strategy.kind}.')}\n\n"
        f"It takes {kind} pictures of {spec.image_size} x {spec.image_size} pixels and gives one of {len(classes)} classes: "
        f"{names}.\n"
    )


def _source(run: Run) -> str:
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
        return _cell(value)
    return f"{value:.2%}" if key.rsplit("/", 1)[-1] in _SHARES else f"{value:.4g}"


def _measured(summary: dict[str, Any], evaluation: dict[str, Any]) -> str:
    matrix = evaluation.get("confusion") or []
    count = sum(map(sum, matrix))
    best = summary.get("best") or {}
    values = evaluation.get("metrics") or best.get("metrics") or summary.get("final") or {}
    values = {key: value for key, value in values.items() if key.startswith("val/")}
    if not count and not values:
        return "## What was measured\n\nNothing: the run had no validation samples.\n"
    lines = ["## What was measured", ""]
    if values:
        lines += ["| measure | value |", "|---|---|"]
        lines += [f"| {_cell(key.removeprefix('val/'))} | {_number(key, value)} |" for key, value in values.items()]
        lines.append("")
    if count:
        right = sum(row[i] for i, row in enumerate(matrix))
        step = f" of step {evaluation['step']}" if "step" in evaluation else ""
        lines += [f"The table below is the evaluation{step} on {count:,} validation samples, of which {right:,} were right.", ""]
    if evaluation.get("per_class"):
        lines += ["| class | precision | recall | F1 | samples |", "|---|---|---|---|---|"]
        for entry in evaluation["per_class"]:
            shares = " | ".join(_number(key, entry.get(key)) for key in ("precision", "recall", "f1"))
            lines.append(f"| {_cell(entry.get('name'))} | {shares} | {entry.get('support')} |")
        lines.append("")
    return "\n".join(lines)


def _training(run: Run, manifest: dict[str, Any], summary: dict[str, Any]) -> str:
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
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["## How it was trained", "", "| | |", "|---|---|", *lines, ""])


def _limits(run: Run, classes: tuple[str, ...]) -> str:
    start = (
        "The licence of the code applies to the architecture."
        if run.model.weights == "none"
        else f"It was begun from given weights ({_cell(PurePath(run.model.weights).name)}); their licence is not known to graft "
        "and may bind this model."
    )
    return (
        "## Limits\n\n"
        f"- Every picture gets one of the {len(classes)} classes, also one that shows none of them.\n"
        "- The numbers hold for pictures like the validation samples; on others they were not measured.\n"
        "- The probabilities were not calibrated: a high one is no proof.\n\n"
        "## Licence\n\n"
        f"To be filled in by whoever publishes this model. {start} The training data may set terms too.\n"
    )
