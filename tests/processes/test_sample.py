"""`graft sample` on a run that was really trained."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.faults.test_diffusion import file
from tests.trainers import Zygote
from trainer import sheet
from trainer.commands import main
from trainer.rundir import RunDir


@pytest.fixture(scope="module")
def run(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    zygote.ask({"do": "import", "names": ["diffusers.models.unets.unet_2d", "diffusers.schedulers", "peft"]})
    folder = tmp_path_factory.mktemp("sample")
    (rank,) = zygote.start(file(folder, train={"steps": 8, "ema": 0.9}), folder)
    assert rank.wait() == 0, rank.text()
    return RunDir(folder / "run")


def pixels(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_images_of_seeds_and_classes(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["sample", str(run.path), "--device", "cpu", "--checkpoint", "last"]
    assert main([*ask, "--seeds", "0-9", "--batch", "3", "--out", str(tmp_path / "all"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"folder": str(tmp_path / "all"), "step": 8, "images": 50}
    found = pixels(tmp_path / "all")
    assert list(found)[:2] == ["0-000000.png", "0-000001.png"]
    with (tmp_path / "all" / "samples.csv").open() as rows:
        assert list(csv.DictReader(rows))[6] == {"file": "1-000001.png", "class": "1", "seed": "1"}
    shown = sheet.read(run.samples / "step-00000008.png")
    assert shown is not None
    image, layout = shown
    for place, word in enumerate(layout.captions):
        x, y = place % layout.columns * (layout.width + sheet.GAP), place // layout.columns * (layout.height + sheet.GAP)
        tile = np.array(image)[y : y + 8, x : x + 8, 0].astype(int)
        assert np.abs(tile - found[f"{word}-{place:06d}.png"]).max() <= 1, "the seeds of the evaluation's sheet"

    assert main([*ask, "--seeds", "9,2", "--classes", "3,1", "--out", str(tmp_path / "some")]) == 0
    some = pixels(tmp_path / "some")
    assert list(some) == ["1-000002.png", "1-000009.png", "3-000002.png", "3-000009.png"]
    assert all(np.abs(image.astype(int) - found[name]).max() <= 1 for name, image in some.items())
    assert "4 images of step 8 are in" in capsys.readouterr().out
    strong = [*ask, "--seeds", "2", "--classes", "3", "--guidance", "8", "--steps", "9", "--sampler", "ddpm"]
    assert main([*strong, "--out", str(tmp_path / "strong")]) == 0
    assert not np.array_equal(pixels(tmp_path / "strong")["3-000002.png"], found["3-000002.png"])


def test_processes_share_the_work(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ["sample", str(run.path), "--device", "cpu", "--seeds", "0-6", "--batch", "4"]
    assert main([*ask, "--out", str(tmp_path / "one")]) == 0
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main([*ask, "--out", str(tmp_path / "two")]) == 0
    one, two = pixels(tmp_path / "one"), pixels(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one), "to the bit: the batches are the same"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "7"], "has no class '7'; known: 0, 1, 2, 3, 4"),
        (["--seeds", "4-1"], "'4-1' is no seed nor a range"),
        (["--seeds", "1,1"], "names a seed twice"),
        (["--steps", "51"], "--steps is 51, and the noise has 50 time steps"),
        (["--guidance", "-1"], "--guidance must be at least 0"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--out", str(Path(__file__))], "is a file; name a folder"),
    ],
)
def test_what_cannot_be_made(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "new")]
    assert main(["sample", str(run.path), "--device", "cpu", *words, *out]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["sample", str(run.path), "--device", "cpu", "--classes", "1", "--out", str(tmp_path)]
    assert main([*ask, "--seeds", "0-1"]) == 0
    before = (tmp_path / "1-000001.png").read_bytes()
    assert main([*ask, "--seeds", "1-2", "--guidance", "5"]) == 2
    assert "has 1 of these images already, 1-000001.png for one" in capsys.readouterr().err
    assert (tmp_path / "1-000001.png").read_bytes() == before
    assert main([*ask, "--seeds", "2"]) == 0
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == 4


def test_other_commands_say_what_to_write(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run.path), str(tmp_path / "x.png")]) == 2
    assert "makes images and says nothing of any; write `graft sample run`" in capsys.readouterr().err
    assert main(["evaluate", str(run.path), "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 178
    assert told["metrics"]["loss"] == pytest.approx(run.read_json(run.summary)["best"]["value"], abs=1e-5)
