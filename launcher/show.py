"""Plans as tables for people. Imports rich, so imported where something is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.plan import Plan

_CLASSES = 12  # classes that are named
_LEARNS = {
    "full": "every layer", "head": "the new head alone, the rest is frozen", "blocks": "the head and the last blocks",
    "gradual": "the head, then block after block", "probe": "the head alone, then every layer",
    "norms": "the head and the normalisation", "biases": "the head and the biases", "lora": "the head, and adapters in the trunk",
}  # fmt: skip


def plan(plan: Plan, happens: str, more: Sequence[tuple[str, str]] = ()) -> None:
    """Print a plan, and further rows: label and text."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in [*plan_rows(plan, happens), *more]:
        table.add_row(Text(label), Text(text))
    Console().print(table)


def plan_rows(plan: Plan, happens: str) -> list[tuple[str, str]]:
    """The lines of a plan: label and text."""
    ranks = "1 process" if plan.world_size == 1 else f"{plan.world_size} ranks"
    where = f"{ranks} on {plan.device}" + (f", {plan.nodes} nodes" if plan.nodes > 1 else "")
    shares = sorted(set(plan.shares), reverse=True)
    share = " or ".join(str(s) for s in shares)
    batch = f"{plan.global_batch} a step = {plan.world_size} x {share}" if plan.world_size > 1 else f"{plan.global_batch} a step"
    batch += f", in {plan.accumulation} micro-batches of {plan.micro_batch}" if plan.accumulation > 1 else ""
    if plan.tries and plan.device != "cpu":
        batch += "; in smaller ones, if the GPU has no room for so many (train.micro_batch: auto)"
    tail = f"; the last batch is full and takes {plan.tail:,} from the next epoch" if plan.tail else ""
    val = f"{plan.val_samples:,} for validation" if plan.val_samples is not None else "no validation"
    rows = [
        ("run", f"{plan.name}: {happens}"),
        ("processes", f"{where}, {plan.threads} CPU thread{'s' if plan.threads > 1 else ''} each, {plan.computes}"),
        ("data", f"{plan.train_samples:,} samples{_of_classes(plan)}, {val}"),
        *_data_rows(plan),
        ("batch", batch),
        ("steps", f"{plan.steps:,} = {plan.samples:,} samples = {plan.epochs:.4g} epochs{tail}"),
        ("model", f"{plan.model}, " + ("begun from random weights" if plan.weights == "none" else f"weights {plan.weights}")),
        ("learns", _LEARNS.get(plan.learns, plan.learns)),
        *([("losses", plan.losses)] if plan.losses is not None else []),
        *([("prior", plan.prior)] if plan.prior is not None else []),
        ("warm-up", f"{plan.warmup_samples:,} samples" if plan.warmup_samples else "none"),
    ]
    if plan.evaluate_every is not None:
        rows.append(("evaluates", f"every {plan.evaluate_every}{_times(plan.evaluations)}; the best is chosen by {plan.best}"))
    kept = f"the newest {plan.keep} are kept" + (", and the best" if plan.best else "")
    rows.append(("checkpoints", f"every {plan.checkpoint_every}{_times(plan.checkpoints)}, and at the end; {kept}"))
    return rows


def _data_rows(plan: Plan) -> list[tuple[str, str]]:
    """The classes, how often they come, what is held back and what is mixed, where there is something to say."""
    rows = [(target["name"] or "classes", _target(target, plan.train_samples)) for target in plan.targets]
    if plan.sampled is not None:
        shown = _few([f"{name} {often:,.4g}" for name, often in plan.sampled.items()])
        rows.append(("sampling", f"{plan.sampling}; an epoch has {shown}" if shown else plan.sampling))
    if plan.held_back is not None:
        kinds = [target["kind"] for target in plan.targets]
        how = "stratified by class" if "class" in kinds else "stratified by label" if "labels" in kinds else "by chance"
        rows.append(("held back", f"{plan.held_back} of data.train, {how}"))
    if plan.mix is not None:
        rows.append(("mixing", plan.mix))
    return rows


def _of_classes(plan: Plan) -> str:
    """The classes and the images of each, where a class is all that is said."""
    counts = plan.targets[0]["counts"]
    if len(plan.targets) > 1 or plan.targets[0]["kind"] != "class":
        return ""
    fewest, most = min(counts), max(counts)
    return f" of {len(counts)} classes ({fewest:,}{'' if fewest == most else f' to {most:,}'} a class)"


def _target(target: dict[str, Any], samples: int) -> str:
    """How often each class or label comes, or where numbers lie; and of how many samples that is known, if not of all."""
    kind, labels, known = target["kind"], target["labels"], target["known"]
    if kind == "values":
        spans = zip(labels, target["mean"], target["std"], known, strict=True)
        named = [("" if name == target["name"] else f"{name} ", *rest) for name, *rest in spans]
        return _few([f"{name}{mean:.4g} ± {std:.3g}{_known(count, samples)}" for name, mean, std, count in named])
    if kind == "class":
        counts = zip(labels, target["counts"], strict=True)
        return _few([f"{name} {count:,}" for name, count in counts]) + _known(known[0], samples)
    each = zip(labels, target["counts"], known, strict=True)
    return f"{len(labels)} labels: " + _few([f"{name} {count:,}{_known(whole, samples)}" for name, count, whole in each])


def _known(count: int, samples: int) -> str:
    return "" if count == samples else f" (known of {count:,})"


def _few(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - _CLASSES} more" if len(texts) > _CLASSES else ""
    return ", ".join(texts[:_CLASSES]) + more


def _times(count: int | None) -> str:
    return "" if count is None else f" ({count} time{'s' if count != 1 else ''})"
