"""Sources x targets x strategies as one sweep and one heat map."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launcher import cli_cluster  # noqa: F401 (its commands)
from launcher.cli import app
from launcher.sweep.folders import write_members, write_sweep
from launcher.sweep.matrix import cells, merged
from launcher.sweep.members import Sweep, load_sweep
from tests.trainers import NETWORK, ROOT, run_file
from trainer.config import UserError
from trainer.report import write_sweep_report
from trainer.report.labels import label_curves
from trainer.rundir.matrix import matrix
from trainer.rundir.sweep import Row

AXES: dict[str, Any] = {
    "sources": {"small": {"model.source": f"python:{NETWORK}:small"}, "wide": {"model": {"source": f"python:{NETWORK}:small",
                "args": {"dropout": 0.1}, "adapt": {"in_channels": 1, "image_size": 8}}}},
    "targets": {"low": {"data.train": "digits:0-4/train", "data.val": "digits:0-4/val"},
                "high": {"data.train": "digits:5-9/train", "data.val": "digits:5-9/val"}},
    "strategies": {"head": {"strategy": {"kind": "head"}}, "full": {"strategy.kind": "full", "optimizer.lr": 1e-4}},
}  # fmt: skip


def written(folder: Path, **keys: Any) -> Path:
    run_file(folder, train={"steps": 4})
    known = {"name": "grid", "run": "run.yaml", **AXES, **keys}
    lines = [f"{key}: {json.dumps(value)}" for key, value in known.items() if value is not None]
    (folder / "matrix.yaml").write_text("\n".join(lines) + "\n")
    return folder / "matrix.yaml"


def load(folder: Path, *overrides: str, **keys: Any) -> Sweep:
    return load_sweep(written(folder, **keys), ["sweep.search.kind=matrix", *overrides], folder / "runs")


def test_later_settings_win_section_by_section() -> None:
    first = {"model": {"source": "a", "args": {"x": 1}}}
    assert merged(first, {"model.args.x": 2, "train.epochs": 3}) == {
        "model": {"source": "a", "args": {"x": 2}},
        "train.epochs": 3,
    }
    assert first == {"model": {"source": "a", "args": {"x": 1}}}
    assert merged({"model.source": "a", "model.weights": "b"}, {"model": {"source": "c"}}) == {"model": {"source": "c"}}


def test_from_scratch_every_network_is_trained_once_a_target() -> None:
    sources = {"a": {"model.source": "x", "model.weights": "one"}, "b": {"model.source": "x", "model.weights": "two"}}
    found = cells(sources, {"t": {}, "u": {"data.train": "u"}}, {"head": {"strategy.kind": "head"}}, {"optimizer.lr": 0.1})
    assert [(cell.source, cell.target, cell.strategy) for cell in found] == [
        ("a", "t", "head"), ("b", "t", "head"), ("a", "t", "scratch"),
        ("a", "u", "head"), ("b", "u", "head"), ("a", "u", "scratch"),
    ]  # fmt: skip
    scratch = next(cell for cell in found if cell.strategy == "scratch").settings
    assert scratch == {"model.source": "x", "model.weights": "none", "strategy": {"kind": "full"}, "optimizer.lr": 0.1}


def test_members_are_the_combinations_with_their_names(tmp_path: Path) -> None:
    sweep = load(tmp_path, "train.epochs=3", scratch=True)
    assert len(sweep.members) == 2 * 2 * 3
    by_label = {tuple((member.labels or {}).values()): member.run for member in sweep.members}
    run = by_label["wide", "high", "full"]
    assert (run.model.args, run.data.train) == ({"dropout": 0.1}, "digits:5-9/train")
    assert (run.strategy.kind, run.optimizer.lr) == ("full", 1e-4)
    assert by_label["small", "low", "head"].optimizer.lr == 1e-3
    assert by_label["small", "low", "scratch"].strategy.kind == "full"
    write_sweep(sweep)
    again = load_sweep(sweep.folder.config, [], tmp_path / "runs")
    assert [member.name for member in again.members] == [member.name for member in sweep.members]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sources": {}}, "a matrix needs 'sources'"),
        ({"strategies": {"scratch": {"strategy.kind": "full"}}}, "'scratch' is the name of the training from scratch"),
        ({"over": {"optimizer.lr": [1e-3]}}, "'over' belongs to other searches"),
        ({"targets": {"low": {"data.trian": "digits:0-4/train"}}}, "matrix.yaml:4: unknown key 'data.trian'"),
        ({"targets": {"low": {"name": "x"}}}, "'name' cannot be set"),
        ({"scratch": {"optimizer.lr": "fast"}}, "matrix.yaml:6: 'optimizer.lr' must be a number"),
        ({"strategies": {"a": {"strategy": {"kind": "full"}}, "b": {"strategy.kind": "full"}}}, "two members are the same run"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, **keys)
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_other_sweeps_have_no_axes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'sources' belongs to search"):
        load_sweep(written(tmp_path, over={"optimizer.lr": [1e-3]}), [], tmp_path / "runs")


def finished(sweep: Sweep, values: dict[tuple[str, str, str], float]) -> None:
    write_sweep(sweep)
    write_members(sweep.members)
    for member in sweep.members:
        source, target, strategy = (member.labels or {}).values()
        if (source, target, strategy) in values:
            best = {"metric": "val/accuracy", "value": values[source, target, strategy], "step": 4}
            member.rundir.summary.write_text(json.dumps({"state": "done", "step": 4, "best": best, "final": {"val/loss": 1.0}}))
            member.rundir.mark("DONE", "4 steps", 0, 4)


def test_the_heat_map_compares_within_a_target(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    values = {("small", "low", "head"): 0.9, ("small", "low", "full"): 0.7, ("wide", "low", "full"): 0.8,
              ("small", "high", "head"): 0.2, ("wide", "high", "full"): 0.4}  # fmt: skip
    finished(sweep, values)
    found = matrix(*sweep.folder.rows())
    assert found is not None
    assert (found.sources, found.targets, found.strategies) == (("small", "wide"), ("low", "high"), ("head", "full"))
    assert found.best("low") == 0.9
    assert found.goodness(("wide", "low", "full")) == pytest.approx(0.5)
    assert found.goodness(("wide", "high", "full")) == 1.0
    assert found.goodness(("wide", "low", "head")) is None
    page = write_sweep_report(sweep.folder, sweep.folder.report).read_text()
    assert page.count('<svg class="heat"') == 2
    assert page.count('class="empty"') == 3
    assert page.count('stroke-width="1.6"') == 2, "the best of each target is framed"
    assert "90.0%" in page
    shown = CliRunner().invoke(app, ["runs", "--sweep", "grid", "--runs", str(tmp_path / "runs")])
    assert shown.exit_code == 0, shown.output
    assert "0.9000 *" in shown.output
    assert "0.4000 *" in shown.output
    with sweep.folder.results.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert (table[0]["source"], table[0]["target"], table[0]["strategy"]) == ("small", "low", "head")


def test_a_loss_is_best_where_it_is_lowest() -> None:
    def row(index: int, source: str, best: float) -> Row:
        return Row(index, source, {"source": source, "target": "t", "strategy": "s"}, "done", 1, best, {}, None)

    found = matrix("val/loss", [row(0, "a", 2.0), row(1, "b", 1.0)])
    assert found is not None
    assert (found.best("t"), found.goodness(("b", "t", "s")), found.goodness(("a", "t", "s"))) == (1.0, 1.0, 0.0)


def test_label_curves_are_means_over_seeds() -> None:
    rows = [
        Row(i, f"m{i}", {"data.per_class": count, "strategy.kind": kind, "train.seed": seed}, "done", 1, value, {}, None)
        for i, (count, kind, seed, value) in enumerate(
            [(5, "head", 0, 0.4), (5, "head", 1, 0.6), (50, "head", 0, 0.8), (5, "full", 0, 0.3), (50, "full", 0, 0.9)]
        )
    ]
    drawn = label_curves("val/accuracy", rows)
    assert "head: 50.00% at 5 data.per_class" in drawn
    assert drawn.count('class="line"') == 2
    assert label_curves("val/accuracy", rows[:2]) == ""


def test_a_matrix_trains_here(tmp_path: Path) -> None:
    axes = {**AXES, "sources": {"small": AXES["sources"]["small"]}, "targets": {"low": AXES["targets"]["low"]}}
    file = written(tmp_path, **axes)
    done = CliRunner().invoke(app, ["matrix", str(file), "--runs", str(tmp_path / "runs"), "--dry-run", "--local"])
    assert done.exit_code == 0, done.output
    assert "2 to train" in done.output


def test_the_example_is_a_matrix(tmp_path: Path) -> None:
    sweep = load_sweep(ROOT / "configs" / "sweeps" / "matrix.yaml", ["sweep.search.kind=matrix"], tmp_path)
    assert len(sweep.members) == 16
    assert {(member.labels or {})["strategy"] for member in sweep.members} == {"head", "probe", "full", "scratch"}
