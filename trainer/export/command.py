"""What `graft export` is told, and what it does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainer.config import EXIT_DONE, GraftError
from trainer.export import (
    export,
    export_autoencoder,
    export_cycle,
    export_gan,
    export_generator,
    export_translator,
    fold,
)  # fmt: skip
from trainer.measuring import measure
from trainer.restored import Restored, device_of, restore
from trainer.rundir import RunDir

_WRITERS = {
    "autoencoder": export_autoencoder, "cycle": export_cycle, "diffusion": export_generator, "gan": export_gan,
    "translate": export_translator,
}  # fmt: skip


def write(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Read the arguments and write the folder. Raises UserError."""
    parser.add_argument("--out", type=Path, help="the folder to write (default: RUN/export)")
    arguments = parser.parse_args(argv)
    folder = RunDir(arguments.run.resolve())
    restored = restore(folder, arguments.checkpoint)
    evaluation: dict[str, Any] = folder.read_json(folder.samples / "evaluation.json")
    if evaluation.get("step") != restored.step and restored.run.data.val is not None:
        evaluation = _again(restored, arguments.device)
    out, summary = arguments.out or folder.export, folder.read_json(folder.summary)
    writer = _WRITERS.get(restored.run.task.kind)
    out = writer(restored, out, summary, evaluation) if writer is not None else _answers(restored, out, summary, evaluation)
    print(f"step {restored.step:,} is exported to {out}; its README.md says how to use it")
    return EXIT_DONE


def _answers(restored: Restored, out: Path, summary: dict[str, Any], evaluation: dict[str, Any]) -> Path:
    """A network that says something of images."""
    if restored.task.scale is not None:
        fold(restored.network, restored.head, restored.task.scale, restored.spec)
    return export(
        restored.folder, out, network=restored.network, spec=restored.spec, outputs=restored.task.outputs, run=restored.run,
        summary=summary, evaluation=evaluation,
    )  # fmt: skip


def _again(restored: Restored, device: str) -> dict[str, Any]:
    """The figures of just these weights, which are not those of the last evaluation; none where the data is out of reach."""
    try:
        result, _ = measure(restored, None, device_of(device))
    except GraftError as error:
        print(f"graft: the card has no figures, since the validation data cannot be read: {error}", file=sys.stderr)
        return {}
    restored.network.cpu()
    return {"step": restored.step, "metrics": result.metrics, **result.details}
