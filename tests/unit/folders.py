"""Run folders as a training leaves them, made up for tests of what reads them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.config import load
from trainer.rundir import RunDir

RUN = """
name: NAME
model: {source: "torchvision:resnet18", weights: IMAGENET1K_V1}
strategy: {kind: head}
data: {train: "digits:5-9/train", val: "digits:5-9/test"}
optimizer: {kind: adam, lr: 1e-3}
"""


def bare(root: Path, name: str = "tiny", text: str = RUN) -> RunDir:
    """A prepared folder without any result."""
    file = root / f"{name}.yaml"
    file.write_text(text.replace("NAME", name), encoding="utf-8")
    folder = RunDir(root / "runs" / name)
    folder.prepare(load(file), accept_changes=False)
    return folder


def trained(
    root: Path, name: str = "tiny", *, classes: list[str], steps: int = 200, quality: float = 0.9, seed: int = 0
) -> RunDir:
    """A finished run: a noisy falling loss, ten evaluations, a confusion matrix, right and wrong pictures."""
    folder = bare(root, name)
    rng = random.Random(seed)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        at = {"samples": step * 64, "step": step, "epoch": step / 20, "time": 1.7e9 + step}
        loss = 2.3 * math.exp(-4 * quality * step / steps) + 0.05
        lr = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        lines.append({**at, "train/loss": loss * rng.uniform(0.8, 1.25), "lr": lr})
        if step % (steps // 10) == 0:
            accuracy = quality * (1 - math.exp(-6 * step / steps))
            lines.append({**at, "val/loss": loss * 1.1, "val/accuracy": accuracy, "val/top5": 0.999, "val/f1": accuracy - 0.01})
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    n = len(classes)
    matrix = [[0] * n for _ in range(n)]
    for truth in range(n):
        for _ in range(60):
            matrix[truth][truth if rng.random() < quality else (truth + rng.choice([1, 1, 1, 2, 5])) % n] += 1
    per_class = []
    for i, row in enumerate(matrix):
        column = sum(r[i] for r in matrix)
        precision, recall = row[i] / max(1, column), row[i] / sum(row)
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        per_class.append({"name": classes[i], "precision": precision, "recall": recall, "f1": f1, "support": sum(row)})
    (folder.samples / "examples").mkdir()
    examples = []
    for place in range(12):
        truth = place % n
        for correct in (True, False):
            file = f"examples/{'right' if correct else 'wrong'}-{place:02d}.png"
            picture = Image.new("L", (16, 16))
            picture.putdata([min(255, 16 * ((x * (truth + 2) + y * 3) % 16)) for y in range(16) for x in range(16)])
            picture.save(folder.samples / file)
            seen = classes[truth if correct else (truth + 1) % n]
            examples.append({"file": file, "truth": classes[truth], "predicted": seen, "confidence": 0.93, "correct": correct})
    evaluation = {"step": steps, "classes": classes, "confusion": matrix, "per_class": per_class, "examples": examples}
    (folder.samples / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    summary = {
        "state": "done", "step": steps, "samples": steps * 64, "attempts": 2, "ettr": 0.973, "productive_seconds": 754.2,
        "best": {"metric": "val/accuracy", "value": quality, "step": steps},
        "parameters": {"learning": 2565, "frozen": 11_176_512},
    }  # fmt: skip
    folder.summary.write_text(json.dumps(summary), encoding="utf-8")
    data = {"train": {"samples": 640, "classes": dict.fromkeys(classes, 64), "fingerprint": "ab12" * 16}, "val": None}
    manifest = {"seed": 0, "command": "graft train run.yaml", "git": "1" * 40, "versions": {"torch": "2.14.1"}, "data": data}
    folder.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    events = [
        {"attempt": 1, "time": 1.7e9, "event": "start", "step": 0},
        {"attempt": 2, "time": 1.7e9 + 90, "event": "start", "step": 80},
        {"attempt": 2, "time": 1.7e9 + 300, "event": "end", "state": "DONE", "step": steps, "reason": ""},
    ]
    folder.attempts.write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")
    folder.mark("DONE", f"{steps} steps", 0, steps)
    return folder


def crowd(root: Path, count: int, *, points: int = 400) -> Path:
    """Many run folders in `root`/runs, as a sweep leaves them: most done, some failed, stopped or killed; returns that folder."""
    first = bare(root, "member-0000")
    config = first.config.read_text(encoding="utf-8")
    for number in range(count):
        folder = RunDir(root / "runs" / f"member-{number:04d}")
        folder.create()
        folder.config.write_text(config.replace("member-0000", folder.name), encoding="utf-8")
        total, best, lines = points * 640, 0.0, []
        for point in range(1, points + 1):
            samples = point * 640
            at = {"samples": samples, "step": point * 10, "epoch": samples / 6400, "time": 1.7e9 + number * 60 + point * 3}
            lines.append({**at, "train/loss": 2.3 * math.exp(-3 * point / points) + number % 7 / 100, "lr": 1e-3})
            if point % 40 == 0:
                best = 0.9 * point / points + number / 1e5
                lines.append({**at, "val/loss": 0.4, "val/accuracy": best, "val/top5": 0.99, "val/f1": best - 0.01})
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        summary = {
            "name": folder.name, "state": "done", "step": points * 10, "samples": total, "total_samples": total,
            "final": {"val/accuracy": best}, "best": {"metric": "val/accuracy", "value": best, "step": points * 10},
            "attempts": 1, "ettr": 0.97, "parameters": {"learning": 2565, "frozen": 11_176_512},
        }  # fmt: skip
        folder.summary.write_text(json.dumps(summary, indent=1), encoding="utf-8")
        event = {"attempt": 1, "time": 1.7e9, "event": "start", "step": 0}
        folder.attempts.write_text(json.dumps(event) + "\n", encoding="utf-8")
        state = {3: "FAILED", 5: "REQUEUE", 7: None}.get(number % 10, "DONE")
        if state is not None:
            marker = {"state": state, "reason": "so it ended", "code": 0, "step": points * 10, "time": 1.7e9 + 9999}
            (folder.path / state).write_text(json.dumps(marker), encoding="utf-8")
    return root / "runs"
