"""The report is one page that holds everything, whatever the run folder lacks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.unit.folders import bare, trained
from trainer.commands import report
from trainer.config import UserError
from trainer.report import default_output, svg, write_report
from trainer.report.curves import curves, smoothed
from trainer.report.read import read_run
from trainer.rundir import RunDir

DIGITS = ["five", "six", "seven", "eight", "nine"]


class Page(HTMLParser):
    """Checks that tags are closed in order; collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def page(folders: list[RunDir], out: Path) -> Page:
    write_report(folders, out)
    text = out.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.count("script") == 0
    for _, attributes in parsed.tags:  # nothing is fetched from anywhere
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|https?://", text)
    return parsed


def test_a_finished_run(tmp_path: Path) -> None:
    seen = page([trained(tmp_path, classes=DIGITS)], tmp_path / "sub" / "report.html")
    for words in ("done", "89.8%", "best accuracy", "12,800", "12:34", "97% of the time productive", "2,565", "11.2 M frozen",
                  "taken for", "ab12ab12", "graft train run.yaml", "attempt 2, end"):  # fmt: skip
        assert words in seen.text, words
    assert seen.count("img") == 24
    assert seen.count("svg") == 4
    assert "prefers-color-scheme:dark" in (tmp_path / "sub" / "report.html").read_text(encoding="utf-8")


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [trained(tmp_path, name, classes=DIGITS, quality=q) for name, q in (("head", 0.7), ("full", 0.95))]
    seen = page(runs, tmp_path / "report.html")
    assert "2 runs compared" in seen.text
    best = [attributes for tag, attributes in seen.tags if tag == "td" and attributes.get("class") == "best"]
    assert len(best) == 2  # the accuracy and the loss of the better run
    assert "full: What was mistaken for what" in seen.text


def test_what_checkpoints_cost_is_a_tile(tmp_path: Path) -> None:
    folder = trained(tmp_path, "one", classes=DIGITS)
    at = {"samples": 99_999, "step": 1563, "epoch": 78.0, "time": 1.8e9, "train/loss": 0.1}
    with folder.metrics.open("a", encoding="utf-8") as file:
        for stall, shadow in ((0.012, {}), (0.3456, {"checkpoint/shadow": 1.043}), (0.02, {"checkpoint/shadow": 1.01})):
            file.write(json.dumps({**at, "checkpoint/stall_s": stall, **shadow}) + "\n")
    text = write_report([folder], tmp_path / "page.html").read_text()
    assert "<b>346 ms</b><span>held up by a checkpoint at most; steps 1.04 times as long while it is written</span>" in text


def test_the_distances_of_a_generator_are_drawn(tmp_path: Path) -> None:
    runs = [trained(tmp_path, name, classes=DIGITS) for name in ("grafted", "scratch")]
    assert "Distance of what it makes" not in page(runs, tmp_path / "report.html").text
    for folder, values in zip(runs, ((64.9, 41.3), (210.9, 88.5)), strict=True):
        with folder.metrics.open("a", encoding="utf-8") as file:
            for step, value in enumerate(values, 201):
                file.write(json.dumps({"step": step, "samples": step * 64, "val/kd_demo": 0.1, "val/fd_demo": value}) + "\n")
    seen = page(runs, tmp_path / "report.html")
    assert "Distance of what it makes from the data" in seen.text
    assert "Distance of what it makes from the data" in page(runs[:1], tmp_path / "report.html").text
    assert "200" in seen.text, "the axis reaches what Fréchet's distance says, not the kernels'"


def test_the_likeness_of_pictures_is_drawn(tmp_path: Path) -> None:
    """By itself: decibels are no errors, and would leave nothing of a mean error."""
    runs = [trained(tmp_path, name, classes=DIGITS) for name in ("grafted", "scratch")]
    for folder, values in zip(runs, ((18.0, 23.5), (12.0, 19.5)), strict=True):
        with folder.metrics.open("a", encoding="utf-8") as file:
            for step, value in enumerate(values, 201):
                measured = {"val/psnr": value, "val/ssim": value / 30, "val/mae": 0.05}
                file.write(json.dumps({"step": step, "samples": step * 64, **measured}) + "\n")

    def cards(views: list[RunDir]) -> dict[str, str]:
        html = curves([read_run(folder) for folder in views])
        return dict(re.findall(r"<h3>(.*?)</h3>(.*?)</svg>", html, re.DOTALL))

    alone, both = cards(runs[:1]), cards(runs)
    assert "PSNR, dB" in alone["Likeness to the targets"]
    assert "SSIM" not in alone["Likeness to the targets"], "which has another scale"
    assert "mean absolute error" in alone["Validation errors"]
    assert "PSNR" not in alone["Validation errors"]
    assert all(f"<title>{name} PSNR, dB</title>" in both["Likeness to the targets"] for name in ("grafted", "scratch"))
    assert "Validation errors" not in both, "of several runs the first metric alone is drawn, and that is the accuracy"


def test_text_of_users_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = trained(tmp_path, classes=[evil, '"><img src=x>', "a&b"])
    folder.mark("FAILED", f"broke on {evil}", 1)
    manifest = json.loads(folder.manifest.read_text())
    folder.manifest.write_text(json.dumps({**manifest, "command": evil, evil: evil}))
    seen = page([folder], tmp_path / "report.html")
    assert evil in seen.text
    assert seen.count("img") == 24
    assert "failed" in seen.text


def test_a_picture_outside_the_samples_is_not_embedded(tmp_path: Path) -> None:
    folder = trained(tmp_path, classes=DIGITS)
    (tmp_path / "secret.png").write_bytes((folder.samples / "examples" / "right-00.png").read_bytes())
    path = folder.samples / "evaluation.json"
    value = json.loads(path.read_text())
    value["examples"][0]["file"] = "../../../secret.png"
    value["examples"][1]["file"] = "evaluation.json"
    path.write_text(json.dumps(value))
    assert page([folder], tmp_path / "report.html").count("img") == 22


def test_missing_pieces(tmp_path: Path) -> None:
    """A folder before its first step, one killed in mid-write, one without validation, one with damaged files."""
    empty = bare(tmp_path, "empty")
    assert "unfinished" in page([empty], tmp_path / "a.html").text
    killed = bare(tmp_path, "killed")
    killed.metrics.write_text('{"samples":64,"step":1,"epoch":0.1,"train/loss":2.5,"lr":0.001}\n{"samples":128,"st')
    assert "last training loss" in page([killed], tmp_path / "b.html").text
    hurt = trained(tmp_path, "hurt", classes=DIGITS)
    for path in (hurt.summary, hurt.manifest, hurt.samples / "evaluation.json"):
        path.write_text("{")
    hurt.metrics.write_text('{"samples":1,"step":1,"train/loss":null,"val/loss":null,"val/accuracy":null}\n')
    assert "done" in page([hurt], tmp_path / "c.html").text
    page([empty, killed, hurt], tmp_path / "d.html")
    with pytest.raises(UserError, match="not a run folder"):
        write_report([RunDir(tmp_path)], tmp_path / "e.html")


def test_many_classes(tmp_path: Path) -> None:
    """A heat map up to 100 classes, the most frequent mistakes alone beyond."""
    hundred = trained(tmp_path, "hundred", classes=[f"class {i}" for i in range(100)], steps=2000)
    seen = page([hundred], tmp_path / "a.html")
    assert seen.count("svg") == 4
    assert seen.count("rect") > 200
    more = trained(tmp_path, "more", classes=[f"class {i}" for i in range(101)], steps=20)
    seen = page([more], tmp_path / "b.html")
    assert seen.count("svg") == 3
    assert seen.count("rect") == 0
    assert "Most frequent mistakes" in seen.text
    assert (tmp_path / "a.html").stat().st_size < 300_000


def test_ticks_are_round_and_inside() -> None:
    assert svg.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert svg.ticks(0, 12_800, about=7) == [0, 2000, 4000, 6000, 8000, 10_000, 12_000]
    assert svg.log_ticks(0.09, 2.5) == pytest.approx([0.1, 0.2, 0.5, 1, 2])
    assert [svg.number(v) for v in (0, 1e-5, 5e-4, 0.25, 12_000, 3e6)] == ["0", "1e-5", "0.0005", "0.25", "12k", "3M"]


def test_long_curves_keep_their_extremes() -> None:
    values = [1.0] * 100_000
    values[54_321], values[77_777] = 9.0, float("nan")
    kept = svg.thin([float(i) for i in range(100_000)], values)
    assert len(kept) <= 402
    assert (54_321.0, 9.0) in kept
    assert smoothed([2.0, float("nan"), 2.0])[2] == pytest.approx(2.0)


def test_torch_free() -> None:
    code = "import sys, trainer.report; assert not {'torch', 'wandb', 'torchvision', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_the_page_of_several_runs_lies_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the folder of the first it would replace that run's own."""
    folders = [trained(tmp_path, name, classes=DIGITS) for name in ("a", "b")]
    assert report([str(folder.path) for folder in folders]) == 0
    out = default_output(folders)
    assert capsys.readouterr().out.strip() == str(out)
    assert out.is_file()
    assert not folders[0].report.exists()
