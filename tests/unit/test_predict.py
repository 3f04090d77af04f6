"""Pictures in, classes out; a bad file costs its own row only."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.config import UserError
from trainer.config.targets import Facts
from trainer.config.tasks.classify import Config
from trainer.predict import Say, predict_files, show
from trainer.restored import device_of
from trainer.tasks.classify import Classify

CLASSES = ("dark", "middle", "light")


class Brightness(nn.Module):
    """Three classes by the mean of the pixels; counts how many pictures came at once."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([-mean, -(mean - 0.5).abs() * 2, mean - 1], dim=1) * 20


def say(top: int) -> Say:
    task = Classify(Config(), Facts.plain(CLASSES, [1, 1, 1]))
    return lambda logits: task.predictions(logits, top)


def read(path: Path) -> torch.Tensor:
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    return torch.full((1, 4, 4), int(path.read_text()), dtype=torch.uint8)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return images / 255


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in (
        ("b.png", "250"),
        ("a.png", "3"),
        ("sub/c.JPG", "130"),
        ("sub/bad.png", ""),
        (".hid/x.png", "1"),
        ("n.txt", "1"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value)
    return tmp_path


def test_rows_in_order_with_folders_expanded_and_a_bad_file_named(folder: Path) -> None:
    network = Brightness()
    files = [folder / "b.png", folder, folder / "n.txt"]
    rows = predict_files(network, say(2), files, read, normalise, batch=2)
    names = [str(Path(row["file"]).relative_to(folder)) for row in rows]
    assert names == ["b.png", "a.png", "b.png", "sub/bad.png", "sub/c.JPG", "n.txt"]
    assert [row.get("class") for row in rows] == ["light", "dark", "light", None, "middle", "dark"]
    assert rows[3] == {"file": str(folder / "sub/bad.png"), "error": "the file is empty"}
    assert network.batches == [2, 2, 1]
    assert [entry["class"] for entry in rows[0]["top"]] == ["light", "middle"]
    assert rows[0]["probability"] == rows[0]["top"][0]["probability"] > 0.9


def test_json_lines_and_exit_codes(folder: Path) -> None:
    good = predict_files(Brightness(), say(9), [folder / "a.png"], read, normalise, batch=8)
    out = io.StringIO()
    assert show(good, True, out) == 0
    line = json.loads(out.getvalue())
    assert line["class"] == "dark"
    assert sum(entry["probability"] for entry in line["top"]) == pytest.approx(1)
    bad = predict_files(Brightness(), say(1), [folder], read, normalise, batch=8)
    out = io.StringIO()
    assert show(bad, True, out) == 1
    assert [json.loads(text).get("error") for text in out.getvalue().splitlines()].count("the file is empty") == 1


def test_the_table_is_whole_without_a_terminal(folder: Path) -> None:
    (folder / "[red]").mkdir()
    long = folder / "[red]" / ("x" * 150 + ".png")
    long.write_text("3")
    rows = predict_files(Brightness(), say(3), [long, folder / "sub"], read, normalise, batch=8)
    out = io.StringIO()
    assert show(rows, False, out) == 1
    assert str(long) in out.getvalue()
    assert "not read: the file is empty" in out.getvalue()
    assert "middle" in out.getvalue()


def test_a_long_reason_stays_on_its_line_without_a_terminal() -> None:
    reason = "damaged: image file is truncated (81 bytes not processed)"
    top = [{"class": "longsleeve", "probability": 0.5}, *({"class": f"kind {n}", "probability": 0.1} for n in range(5))]
    out = io.StringIO()
    show([{"file": "a.jpg", **top[0], "top": top}, {"file": "broken.jpg", "error": reason}], False, out)
    assert len(out.getvalue().splitlines()) == 3
    assert reason in out.getvalue()


@pytest.mark.parametrize(("name", "words"), [("gpu", "write auto, cpu, cuda"), ("cuda:99", "GPUs are visible")])
def test_a_device_that_is_not_there_is_an_error_for_people(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        device_of(name)


def test_what_is_not_there_is_said_before_anything_is_read(folder: Path) -> None:
    (folder / "none").mkdir()
    network = Brightness()
    for files, words in (([folder / "a.pmg"], "no such file; did you mean"), ([folder / "none"], "no picture in this folder")):
        with pytest.raises(UserError, match=words):
            predict_files(network, say(1), [folder / "b.png", *files], read, normalise, batch=1)
    assert network.batches == []
