"""Sheets of generated images, and the report that shows them."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.trainers import run_file
from trainer import sheet
from trainer.config import load
from trainer.report import write_report
from trainer.rundir import RunDir


def tiles(count: int, value: int = 0) -> list[Image.Image]:
    return [Image.fromarray(np.full((6, 4), value + place, dtype=np.uint8)) for place in range(count)]


def test_a_sheet_says_how_it_is_laid_out(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "step-00000001.png"
    sheet.save(tiles(7), [f"c{place}" for place in range(7)], 3, path)
    found = sheet.read(path)
    assert found is not None
    image, layout = found
    assert layout == sheet.Layout(3, 4, 6, ("c0", "c1", "c2", "c3", "c4", "c5", "c6"))
    assert image.size == (3 * 6 - 2, 3 * 8 - 2)
    assert image.getpixel((6, 8)) == (4, 4, 4), "the fifth image stands in the second row, second column"
    row = np.array(sheet.strip(image, layout, 7))
    assert row.shape == (6, 6 * 6 - 2, 3)
    assert [int(row[0, 6 * place, 0]) for place in range(6)] == list(range(6))
    Image.new("L", (3, 3)).save(tmp_path / "other.png")
    assert sheet.read(tmp_path / "other.png") is None
    (tmp_path / "broken.png").write_bytes(path.read_bytes()[:60])
    assert sheet.read(tmp_path / "broken.png") is None


def test_the_report_shows_how_a_generator_learnt(tmp_path: Path) -> None:
    model = {"source": "diffusers:UNet2DModel", "adapt": {"in_channels": 1, "image_size": 8}}
    file = run_file(tmp_path, task={"kind": "diffusion"}, model=model, data={"normalize": "auto"})
    folder = RunDir(tmp_path / "runs" / "run")
    folder.create()
    folder.prepare(load(file, []), accept_changes=False)
    steps = list(range(10, 250, 10))
    lines = []
    for step in steps:
        sheet.save(tiles(10, step), ["cat", "dog"] * 5, 2, folder.samples / f"step-{step:08d}.png")
        lines.append(json.dumps({"samples": step, "step": step, "epoch": 1, "time": 0, "val/loss": 1 / step}))
    folder.metrics.write_text("\n".join(lines) + "\n")
    about = {"kind": "diffusion", "step": 240, "samples": 9, "draws": 4, "loss_by_time": [0.5, 0.25, None, 0.0625]}
    (folder.samples / "evaluation.json").write_text(json.dumps(about))
    text = write_report([folder], tmp_path / "report.html").read_text()
    shown = [int(step) for step in re.findall(r"<td>step (\d+)<br>", text)]
    assert len(shown) == 10
    assert (shown[0], shown[-1]) == (10, 240)
    assert "columns: cat, dog" in text
    assert "<td>0.5</td><td>0.25</td><td>–</td><td>0.0625</td>" in text
    pictures = [Image.open(BytesIO(base64.b64decode(data))) for data in re.findall(r'<img [^>]*base64,([^"]+)"', text)]
    assert len(pictures) == 11
    assert [int(np.array(picture)[0, 0, 0]) for picture in pictures[:10]] == shown
