"""Labels, numbers and several heads, trained for real: killed and resumed, on one rank and on two, measured, told, exported."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pictures import pictures
from tests.trainers import NETWORK, Zygote, points, run_file, same
from tests.unit.test_report import page
from trainer import commands
from trainer.checkpoint.store import _digest
from trainer.config import UserError
from trainer.measuring import measure
from trainer.restored import restore
from trainer.rundir import RunDir

KILLED = -9
CPU = torch.device("cpu")
QUERIES = {
    "multilabel": "?labels=bright,framed,tilted",
    "regress": "?value=size,shade",
    "multi": "?label=kind&labels=tags&value=size",
}
TASKS: dict[str, dict[str, Any]] = {
    "multilabel": {"kind": "multilabel", "loss": "asymmetric", "pos_weight": "balanced", "label_smoothing": 0.05},
    "regress": {"kind": "regress", "loss": "huber"},
    "multi": {"kind": "multi"},
}


def file(folder: Path, kind: str, **sections: Any) -> Path:
    rows = pictures(folder / "pictures")
    data = {"train": f"csv:{rows}{QUERIES[kind]}", "val": "split:0.25"}
    given: dict[str, Any] = {"data": data, "task": TASKS[kind], **sections}
    return run_file(folder, **given)


@pytest.fixture(scope="module")
def runs(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """The uninterrupted run of each task."""
    found = {}
    for kind in TASKS:
        folder = tmp_path_factory.mktemp(kind)
        assert zygote.run(file(folder, kind), folder) == [0], [rank.text() for rank in zygote.started]
        found[kind] = RunDir(folder / "run")
    zygote.clean()
    return found


@pytest.mark.parametrize(
    ("kind", "at"), [("multilabel", "step@19:0=kill"), ("regress", "step@26:0=kill"), ("multi", "step@9:0=kill")]
)
def test_killed_and_started_again_it_ends_the_same(
    trainers: Zygote, tmp_path: Path, runs: dict[str, RunDir], kind: str, at: str
) -> None:  # fmt: skip
    assert trainers.run(file(tmp_path, kind), tmp_path, fault=at) == [KILLED]
    assert trainers.run(file(tmp_path, kind), tmp_path) == [0]
    same(tmp_path / "run", runs[kind].path)


def test_two_ranks_learn_and_measure_what_one_does(trainers: Zygote, tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        still = {"source": f"python:{NETWORK}:small", "args": {"norm": False, "dropout": 0.0}}
        path = file(folder, "multi", model=still, train={"ema": None, "steps": 15}, evaluate={"every": "5 steps"})
        assert trainers.run(path, folder, world=world) == [0] * world
        found.append(points(folder / "run"))
    assert len(found[0]) == len(found[1])
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, abs=2e-5, nan_ok=True)
    assert any("val/size_mae" in point for point in found[0])


def last(folder: RunDir) -> dict[str, float]:
    """The last evaluation in the record."""
    point = [p for p in points(folder.path) if "val/loss" in p][-1]
    return {key.removeprefix("val/"): value for key, value in point.items() if key.startswith("val/")}


@pytest.mark.parametrize("kind", list(TASKS))
def test_it_learns_and_is_measured_again(runs: dict[str, RunDir], kind: str) -> None:
    folder = runs[kind]
    measured = [p["val/loss"] for p in points(folder.path) if "val/loss" in p]
    assert measured[-1] < measured[0]
    restored = restore(folder, "last")
    again, bad = measure(restored, None, CPU)
    assert bad == 0
    assert again.metrics == pytest.approx(last(folder), rel=1e-5)
    other, _ = measure(restored, restored.run.data.train, CPU)
    assert other.details["samples"] == 96
    evaluation = json.loads((folder.samples / "evaluation.json").read_text())
    assert evaluation["kind"] == kind
    assert evaluation["examples"]
    assert all((folder.samples / example["file"]).is_file() for example in evaluation["examples"])
    lines = (folder.samples / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + again.details["samples"]
    assert len({line.count(",") for line in lines}) == 1


SECTIONS = {
    "multilabel": ("Labels", "with nothing wrong", "average precision", "Wrong, the furthest off", "Right, the surest"),
    "regress": ("Said and true", "in the units of the data", "shade: said against true", "Largest errors", "Smallest errors"),
    "multi": (
        "kind: What was mistaken for what",
        "kind: Calibration",
        "tags: Labels",
        "size: Said and true",
        "size: Largest errors",
    ),
}


@pytest.mark.parametrize("kind", list(TASKS))
def test_the_report_has_a_section_of_each_head(runs: dict[str, RunDir], kind: str, tmp_path: Path) -> None:
    found = page([runs[kind]], tmp_path / "report.html")
    for words in SECTIONS[kind]:
        assert words in found.text
    assert found.count("img") >= 8
    both = page([runs["multilabel"], runs["regress"]], tmp_path / "both.html")
    assert "2 runs compared" in both.text


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert commands.main(list(argv)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", list(TASKS))
def test_predictions_and_an_export_say_the_same(runs: dict[str, RunDir], kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the units of the data, although the network learnt standardised numbers."""
    folder = runs[kind]
    picture = str(folder.path.parent / "pictures" / "004.png")
    run = str(folder.path)
    row = json.loads(said(capsys, "predict", run, picture, "--json", "--checkpoint", "last"))
    table = said(capsys, "predict", run, picture, "--checkpoint", "last")
    said(capsys, "export", run, "--checkpoint", "last")
    program = runpy.run_path(str(folder.export / "predict.py"))
    with torch.inference_mode():
        text = program["tell"](program["load"]()(program["read"](picture)))
    settings = json.loads((folder.export / "config.json").read_text())
    assert settings["task"] == kind
    card = (folder.export / "README.md").read_text()
    heads = row["heads"] if kind == "multi" else {"": row}
    for name, head in heads.items():
        if name:
            own = text[text.index(f"{name}:") + 1 :]
            assert name in table
        else:
            own = text
        if "class" in head:
            assert own[0] == head["class"]
            assert float(own[1]) == pytest.approx(head["probability"], abs=1e-5)
        elif "labels" in head:
            shares = [part.rsplit(" ", 1) for part in own[0].split(", ") if part]
            assert [label for label, _ in shares] == head["labels"]
            assert [float(share) for _, share in shares] == pytest.approx(
                [head["probabilities"][label] for label in head["labels"]], abs=1e-5
            )
        else:
            numbers = [part.rsplit(" ", 1) for part in own[: len(head["values"])]]
            assert {label: float(value) for label, value in numbers} == pytest.approx(head["values"], rel=1e-4)
            assert 5 < head["values"]["size"] < 25, "as the data has it, not standardised"
            assert "mean absolute error" in card
    assert "validation samples" in card
    assert said(capsys, "evaluate", run).count("samples") >= 2


def test_sources_of_another_kind_are_refused_before_training(trainers: Zygote, tmp_path: Path) -> None:
    rows = pictures(tmp_path / "pictures")

    def refused(query: str, task: dict[str, Any], words: str, **sections: Any) -> None:
        data = {"train": f"csv:{rows}{query}", "val": "split:0.25"}
        rank = trainers.start(run_file(tmp_path / task["kind"], data=data, task=task, **sections), tmp_path / task["kind"])[0]
        assert rank.wait() == 2
        assert words in rank.text()
        assert not (tmp_path / task["kind"] / "run" / "metrics.jsonl").exists()

    refused("?labels=tags", {"kind": "classify"}, "data.train says tags (labels); write task: {kind: multilabel}")
    squeezed = {"source": "torchvision:squeezenet1_1", "adapt": {"in_channels": 1, "image_size": 32}}
    refused("?value=size", {"kind": "regress"}, "(classifier.1), since its answers are changed behind it", model=squeezed)
    refused(QUERIES["multi"], {"kind": "multi"}, "checkpoint.best is 'val/age_mae'", checkpoint={"best": "val/age_mae"})


def test_what_a_run_learnt_is_asked_of_other_samples(runs: dict[str, RunDir], tmp_path: Path) -> None:
    restored = restore(runs["multi"], "last")
    rows = pictures(tmp_path / "other", 12)
    found, _ = measure(restored, f"csv:{rows}{QUERIES['multi']}", CPU)
    assert found.details["samples"] == 12
    with pytest.raises(UserError, match="it must say 'size'"):
        measure(restored, f"csv:{rows}?label=kind&labels=tags", CPU)


def test_a_checkpoint_of_before_there_were_other_tasks_is_still_read(references: dict[int, Path], tmp_path: Path) -> None:
    """It says the classes and their counts, and no facts."""
    folder = RunDir(Path(shutil.copytree(references[1], tmp_path / "run")))
    new = restore(folder, "last")
    checkpoint = max(folder.checkpoints.glob("step-*"))
    state = json.loads((checkpoint / "state.json").read_text())
    (known,) = state.pop("facts")
    state |= {"classes": known["labels"], "counts": known["counts"]}
    text = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    old = restore(folder, "last")
    assert old.facts == new.facts
    assert measure(old, None, CPU)[0].metrics == measure(new, None, CPU)[0].metrics
