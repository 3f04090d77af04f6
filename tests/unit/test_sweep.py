"""Sweeps without Slurm: the file, the searches, the members' names, their folders, the table, training here."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher import snapshot
from launcher.sweep.array import Array, ask, snapshot_of, submission
from launcher.sweep.folders import standing, write_members, write_sweep
from launcher.sweep.local import states
from launcher.sweep.members import Sweep, load_sweep
from launcher.sweep.search import Range, drawn, grid
from tests.trainers import NETWORK, ROOT, run_file
from trainer.config import RefusedError, UserError, dump, load
from trainer.report.scatter import Dot, scatter
from trainer.rundir import RunDir
from trainer.rundir.sweep import Row, SweepDir, as_csv

LR = {"optimizer.lr": [1e-3, 1e-2]}


class Shop:
    """A folder with a run file, in which sweep files are written and read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.file = folder, folder / "runs", folder / "sweep.yaml"
        self.run()

    def run(self, **sections: Any) -> None:
        """Write the run file, with some sections changed."""
        run_file(self.folder, **{"train": {"steps": 4}, **sections})

    def write(self, **keys: Any) -> Path:
        """Write a sweep file: one key a line, so that lines can be told."""
        known = {"name": "search", "run": "run.yaml", "over": LR, **keys}
        lines = [f"{key}: {json.dumps(value)}" for key, value in known.items() if value is not None]
        self.file.write_text("\n".join(lines) + "\n")
        return self.file

    def load(self, *overrides: str, **keys: Any) -> Sweep:
        return load_sweep(self.write(**keys), list(overrides), self.runs)

    def refused(self, *overrides: str, **keys: Any) -> str:
        """What is said of a sweep that cannot be; nothing is written."""
        with pytest.raises(UserError) as caught:
            self.load(*overrides, **keys)
        assert not self.runs.exists()
        return str(caught.value).replace(str(self.folder) + "/", "")

    def graft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}, check=False,
        )  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def names(sweep: Sweep) -> list[str]:
    return [member.name for member in sweep.members]


# ---- searches


def test_a_grid_is_every_combination() -> None:
    assert grid({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


OVER: dict[str, Sequence[Any] | Range] = {
    "lr": Range(low=1e-5, high=1e-2, scale="log"), "depth": Range(low=1, high=8, integer=True), "kind": ["a", "b"],
    "drop": Range(low=0, high=0.5),
}  # fmt: skip


def test_random_search_is_a_function_of_seed_and_count_and_grows_at_its_end() -> None:
    few, many = drawn(OVER, 20, 7), drawn(OVER, 200, 7)
    assert many[:20] == few == drawn(OVER, 20, 7)
    assert drawn(OVER, 20, 8) != few
    assert [{**s, "more": None} for s in few] == [{**s, "more": None} for s in drawn({"more": ["x"], **OVER}, 20, 7)]
    assert len({json.dumps(s) for s in many}) == 200


def test_draws_fill_their_ranges() -> None:
    found = drawn(OVER, 1000, 0)
    rates = sorted(s["lr"] for s in found)
    assert rates[0] >= 1e-5
    assert rates[-1] <= 1e-2
    assert all(230 < sum(low <= r < 10 * low for r in rates) < 430 for low in (1e-5, 1e-4, 1e-3))  # a third a decade
    depths = [s["depth"] for s in found]
    assert all(isinstance(d, int) and 80 < depths.count(d) < 180 for d in range(1, 9))
    assert set(depths) == set(range(1, 9))
    assert 0.4 < sum(s["kind"] == "a" for s in found) / 1000 < 0.6
    assert 0.2 < sum(s["drop"] for s in found) / 1000 < 0.3


def test_more_draws_than_there_are_combinations_are_refused() -> None:
    assert len(drawn({"a": [1, 2], "b": [1, 2, 3]}, 6, 0)) == 6
    with pytest.raises(UserError, match="only 6 different"):
        drawn({"a": [1, 2], "b": [1, 2, 3]}, 7, 0)


# ---- mistakes, each with its line


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"over": {"optimizer.lrr": [1]}}, "sweep.yaml:3: unknown key 'optimizer.lrr'; did you mean 'lr'?"),
        ({"over": {"optimzer.lr": [1]}}, "sweep.yaml:3: unknown key 'optimzer'; did you mean 'optimizer'?"),
        ({"over": {"optimizer.lr": [1e-3, -1]}}, "sweep.yaml:3: 'optimizer.lr' is -1: must be greater than 0"),
        ({"over": {"optimizer.lr": 1e-3}}, "sweep.yaml:3: 'optimizer.lr' needs a list"),
        ({"over": {"optimizer.lr": [1e-3, 1e-3]}}, "sweep.yaml:3: 'optimizer.lr' has 0.001 twice"),
        ({"over": {"train.epochs": [1, 1.0]}}, "two members are the same run: train.epochs=1 and train.epochs=1.0"),
        ({"over": {"optimizer": {"lr": [1]}}}, "write keys with dots: 'optimizer.lr"),
        ({"over": {"optimizer": [{"kind": "sgd"}], "optimizer.lr": [1]}}, "'optimizer' holds 'optimizer.lr'"),
        ({"over": {"optimizer.lr": {"low": 1, "high": 2}}}, "is a range, and a grid needs a list"),
        ({"over": {"name": ["a"]}}, "sweep.yaml:3: 'name' cannot be set"),
        ({"over": {"optimizer.lr": {"low": 1, "hig": 2}}, "search": {"kind": "random", "count": 2}}, "did you mean 'high'?"),
        ({"over": {"optimizer.lr": {"low": 2, "high": 1}}, "search": {"kind": "random", "count": 2}}, "low must be less"),
        ({"over": {"optimizer.lr": {"low": 0, "high": 1, "scale": "log"}}, "search": {"kind": "random", "count": 2}},
         "begins above 0"),
        ({"search": {"kind": "random"}}, "sweep.yaml:4: 'search.count' is missing"),
        ({"search": {"count": 2}}, "sweep.yaml:4: 'search.kind' is missing; known: grid, random, list"),
        ({"search": {"kind": "randon"}}, "did you mean 'random'?"),
        ({"search": {"kind": "random", "count": 3}}, "sweep.yaml:4: search.count is 3 and only 2 different"),
        ({"search": {"kind": "list"}, "over": None}, "a list needs 'members'"),
        ({"search": {"kind": "list"}, "members": [{}]}, "'over' belongs to a grid"),
        ({"members": [{}]}, "'members' belongs to search: {kind: list}"),
        ({"over": None}, "needs 'over'"),
        ({"paralel": 3}, "sweep.yaml:4: unknown key 'paralel'; did you mean 'parallel'?"),
        ({"parallel": 0}, "'parallel' is 0"),
        ({"best": "val/acuracy"}, "did you mean 'val/accuracy'"),
        ({"run": "rum.yaml"}, "rum.yaml: no such run file; did you mean 'run.yaml'"),
        ({"set": {"optimizer.lr": 1}}, "is searched and also stands in 'set' (sweep.yaml:4)"),
        ({"set": {"train.step": 1}}, "sweep.yaml:4: unknown key 'train.step'"),
        ({"over": {"optimizer.lr": list(range(1, 400)), "train.seed": list(range(400))}}, "at most 100,000"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_file_line_and_nearest_name(shop: Shop, keys: dict[str, Any], said: str) -> None:
    assert said in shop.refused(**keys)


@pytest.mark.parametrize("name", ["../x", "a\nb", "$(touch x)", "-x", "a;b", "a b", "x" * 90, ""])
def test_hostile_names_are_refused(shop: Shop, name: str) -> None:
    assert "'name' is" in shop.refused(name=name)


def test_all_mistakes_of_all_members_are_told_at_once(shop: Shop) -> None:
    said = shop.refused(over={"optimizer.lr": [1e-3, -1], "train.seed": [0, -5], "train.epochs": [1, 0]})
    assert "'optimizer.lr' is -1" in said
    assert "'train.seed' is -5" in said
    assert "'train.epochs' is 0" in said
    assert "(4 of 8 members, " in said


def test_a_run_of_that_name_is_not_overwritten(shop: Shop) -> None:
    RunDir(shop.runs / "search").prepare(load(shop.folder / "run.yaml"), accept_changes=False)
    with pytest.raises(UserError, match="there is a run called search"):
        shop.load()


def test_overrides_are_the_runs_settings_or_with_a_prefix_the_sweeps(shop: Shop) -> None:
    sweep = shop.load("train.steps=7", "sweep.parallel=3", "sweep.name=other")
    assert {member.run.train.steps for member in sweep.members} == {7}
    assert (sweep.plan.file.parallel, sweep.name) == (3, "other")
    assert "unknown key 'train.stepss'; did you mean 'steps'?" in shop.refused("train.stepss=7")


# ---- members


def test_a_members_name_is_that_of_what_it_learns(shop: Shop) -> None:
    before = names(shop.load())
    assert all(name.startswith("search-") and len(name) == len("search-") + 10 for name in before)
    assert names(shop.load(over={"optimizer.lr": [1e-2, 1e-3, 1e-4]}))[:2] == before[::-1], "reordered and added"
    assert names(shop.load(over={"train.seed": [0], "optimizer.lr": [0.001, 0.01]})) == before, "a key at what it is anyhow"
    assert names(shop.load("resources.time=1:00:00", "track.every=3")) == before, "what may change between attempts"
    assert not set(names(shop.load("train.ema=null"))) & set(before), "another run file"
    assert names(shop.load("schedule.kind=cosine", "evaluate.show=3", "task={kind: classify}")) == before, "what it is anyhow"
    assert names(shop.load("train.epochs=10")) == before
    workers = names(shop.load(over={"data.workers": [0, 1]}))
    assert len(set(workers)) == 2, "searched although it changes nothing that is learnt"


def test_members_are_complete_runs_of_their_own(shop: Shop) -> None:
    shop.run(track={"wandb": {"project": "p"}})
    sweep = shop.load(over={"optimizer.lr": [1e-3], "strategy": [{"kind": "full"}, {"kind": "head"}]})
    assert [member.run.strategy.kind for member in sweep.members] == ["full", "head"]
    for member in sweep.members:
        assert member.text == dump(member.run)
        assert member.run.track.wandb is not None
        assert member.run.track.wandb.group == "search"
    shop.run(track={"wandb": {"project": "p", "group": "mine"}})
    wandb = shop.load().members[0].run.track.wandb
    assert wandb is not None
    assert wandb.group == "mine"


def test_the_resolved_file_gives_the_same_members_from_its_folder(shop: Shop) -> None:
    sweep = shop.load("train.steps=5")
    write_sweep(sweep)
    again = load_sweep(Path("search"), [], shop.runs)
    assert names(again) == names(sweep)
    assert not (shop.runs / "search" / "run.yaml").exists(), "no run"
    assert again.plan.file.set == {"train.steps": 5}


def test_finished_members_are_not_new_and_other_settings_are_refused(shop: Shop) -> None:
    sweep = shop.load()
    write_members(sweep.members)
    first, second = sweep.members
    first.rundir.mark("DONE", "4 steps", 0, 4)
    second.rundir.mark("FAILED", "no", 1, 2)
    found = standing(sweep, None)
    assert (found.done, found.new) == ([first], [second])
    assert states(sweep) == {first.name: "done"}
    for member in sweep.members:
        member.rundir.metrics.write_text('{"step": 1}\n')
    assert standing(shop.load("track.every=2"), None).done[0].name == first.name, "a setting that may change"
    first.rundir.config.write_text(first.text.replace("lr: 0.001", "lr: 0.5"))
    with pytest.raises(RefusedError, match=r"optimizer.lr: 0.5 -> 0.001"):
        standing(sweep, None)


def test_members_write_only_what_is_missing(shop: Shop) -> None:
    sweep = shop.load()
    write_members(sweep.members)
    config = sweep.members[0].rundir.config
    before = config.stat().st_mtime_ns
    sweep.members[1].rundir.config.write_text("torn")
    write_members(sweep.members)
    assert config.stat().st_mtime_ns == before
    assert load(sweep.members[1].rundir.config) == sweep.members[1].run


# ---- the array


def array(sweep: Sweep) -> Array:
    code, fresh = snapshot_of(sweep, ())
    return ask(sweep, code, fresh=fresh)


def test_the_script_of_an_array(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.folder)
    sweep = shop.load(parallel=3, over={"train.seed": list(range(12))})
    whole, body = array(sweep).scripts(1, 12)
    assert "#SBATCH --array=0-11%3" in whole
    assert f"GRAFT_MEMBERS={submission(sweep.folder, 1) / 'members.txt'}" in whole
    assert "GRAFT_RUN=${1-}" in body
    for text in (whole, body):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=20)


def test_members_that_ask_for_different_resources_are_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.folder)
    with pytest.raises(UserError, match=r"ask for different resources .nodes 1 and 2"):
        array(shop.load(over={"resources.nodes": [1, 2]}))
    with pytest.raises(UserError, match=r"train.global_batch=1\): train.global_batch is 1 and there are 2 ranks"):
        array(shop.load("parallel.processes=2", over={"train.global_batch": [24, 1]}))


def test_a_secret_in_a_setting_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.folder)
    monkeypatch.setenv("MY_API_KEY", "s3cret-s3cret")
    with pytest.raises(RefusedError, match="MY_API_KEY"):
        array(shop.load(over={"model.args.token": ["s3cret-s3cret"]}))


# ---- results


def test_the_table_has_the_best_first_and_survives_commas(shop: Shop) -> None:
    sweep = shop.load(over={"optimizer.lr": [1e-4, 1e-3, 1e-2], "strategy": [{"kind": "full"}]})
    write_sweep(sweep)
    write_members(sweep.members)
    for member, value in zip(sweep.members, (0.5, 0.9), strict=False):
        best = {"metric": "val/accuracy", "value": value, "step": 4}
        final = {"val/accuracy": value - 0.1, "val/loss": 1.0}
        summary = {"state": "done", "step": 4, "best": best, "final": final, "productive_seconds": 2.0}
        member.rundir.summary.write_text(json.dumps(summary))
        member.rundir.mark("DONE", "4 steps", 0, 4)
    metric, rows = sweep.folder.write_results()
    assert metric == "val/accuracy"
    assert [(row.best, row.state) for row in rows] == [(0.9, "done"), (0.5, "done"), (None, "new")]
    with sweep.folder.results.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0]["optimizer.lr"] == "0.001"
    assert table[0]["strategy"] == '{"kind": "full"}'
    assert table[0]["best val/accuracy"] == "0.9"
    assert table[0]["val/accuracy"] == "0.8"
    assert table[2]["best val/accuracy"] == ""


def test_another_metric_than_the_checkpoints_is_found_in_the_record(shop: Shop) -> None:
    sweep = shop.load(best="val/loss")
    write_sweep(sweep)
    write_members(sweep.members)
    for member, losses in zip(sweep.members, ((3.0, 2.0, 2.5), (1.0, 4.0, 5.0)), strict=True):
        points = [{"step": step, "val/loss": loss} for step, loss in enumerate(losses, 1)]
        member.rundir.metrics.write_text("".join(json.dumps(point) + "\n" for point in points) + '{"torn')
    metric, rows = sweep.folder.rows()
    assert metric == "val/loss"
    assert [(row.best, row.step, row.metrics) for row in rows] == [(1.0, 3, {"val/loss": 5.0}), (2.0, 3, {"val/loss": 2.5})]


def test_a_row_of_words_is_one_cell() -> None:
    row = Row(0, "a", {"model.weights": 'x,"y"'}, "new", 0, None, {}, None)
    assert list(csv.reader(as_csv("val/loss", [row]).splitlines()))[1][1] == 'x,"y"'


# ---- here


def test_a_sweep_trains_here_goes_on_after_a_failure_and_trains_nothing_twice(shop: Shop) -> None:
    # a factory that refuses one of its arguments: that member fails, the others do not
    shop.write(over={"model.args.dropout": [2.0, 0.1]})
    first = shop.graft("sweep", "sweep.yaml", "--local", "--json")
    assert first.returncode == 1, first.stderr
    said = json.loads(first.stdout)
    assert [m["state"] for m in said["members"]] == ["done", "failed"], first.stderr
    assert said["members"][0]["best"] > 0
    assert "member 2 of 2" in first.stderr
    again = shop.graft("sweep", "sweep.yaml", "--local")
    assert again.returncode == 1
    assert "2 members, 1 done already" in again.stdout
    assert "member 1 of 2" in again.stdout
    assert "member 2 of 2" not in again.stdout
    table = shop.graft("runs", "--sweep", "search")
    assert table.returncode == 0, table.stderr
    assert "dropout" in table.stdout
    assert "1 done, 1 failed" in table.stdout
    listed = json.loads(shop.graft("runs", "--json").stdout)
    assert len(listed) == 2, "the sweep's folder is no run"
    wrong = shop.graft("runs", "--sweep", "serch")
    assert wrong.returncode == 2
    assert "did you mean 'search'?" in wrong.stderr


def test_what_this_machine_cannot_do_is_refused_before_anything_is_written(shop: Shop) -> None:
    shop.write(over={"train.global_batch": [24, 2]}, set={"parallel.processes": 3})
    done = shop.graft("sweep", "sweep.yaml", "--local")
    assert done.returncode == 2
    assert "train.global_batch=2): train.global_batch is 2 and there are 3 ranks" in done.stderr
    assert not list(shop.runs.glob("*/run.yaml"))


def test_a_signal_stops_a_sweep_at_its_member_and_the_next_call_goes_on(shop: Shop) -> None:
    shop.run(train={"steps": 4000}, checkpoint={"every": "1000 steps"}, evaluate={"every": "4000 steps"})
    shop.write()
    sweep = load_sweep(shop.file, [], shop.runs)
    with (shop.folder / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "sweep", "sweep.yaml", "--local"], cwd=shop.folder, stdout=out, stderr=out,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not sweep.members[0].rundir.metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75, (shop.folder / "out").read_text()
    marker = sweep.members[0].rundir.marker()
    assert marker is not None
    assert marker.state == "REQUEUE"
    assert not sweep.members[1].rundir.exists()
    assert "the same command goes on" in (shop.folder / "out").read_text()
    found = SweepDir(shop.runs / "search").rows()[1]
    assert [row.state for row in found] == ["stopped", "new"]


# ---- the report


def test_the_report_draws_every_setting_and_puts_the_best_first(shop: Shop) -> None:
    over = {"optimizer.lr": [1e-5, 1e-3, 1e-2], "strategy.kind": ["head", "full"], "train.seed": [0]}
    sweep = shop.load(over=over)
    write_sweep(sweep)
    write_members(sweep.members)
    for index, member in enumerate(sweep.members[:5]):
        best = {"metric": "val/accuracy", "value": 0.5 + index / 10, "step": 4}
        member.rundir.summary.write_text(json.dumps({"state": "done", "step": 4, "best": best, "final": {"val/<loss>": 1.0}}))
        member.rundir.mark("DONE", "4 steps", 0, 4)
    done = shop.graft("report", "search")
    assert done.returncode == 0, done.stderr
    page = (shop.runs / "search" / "report.html").read_text()
    assert page.count("<svg") == 2, "one value of a setting is nothing to compare"
    assert page.count("<circle") == 10
    names_in_table = [name for name in page.split("<td>") if name.startswith("search-")]
    assert names_in_table[0].startswith(sweep.members[4].name)
    assert "90.0%" in page
    assert "val/&lt;loss&gt;" in page
    assert "<script" not in page
    assert (shop.runs / "search" / "results.csv").exists()


def test_an_axis_is_logarithmic_where_numbers_span_decades_and_words_have_places() -> None:
    def places(values: list[Any]) -> list[float]:
        chart = scatter([Dot(value, 0.5, str(value)) for value in values], title="t", x_label="x")
        return [float(part.partition('"')[0]) for part in chart.split('cx="')[1:]]

    first, second, third = places([1e-4, 1e-3, 1e-2])
    assert second - first == pytest.approx(third - second, abs=0.2)
    first, second, third = places([1.0, 2.0, 4.0])
    assert third - second == pytest.approx(2 * (second - first), abs=0.2)
    first, second = places(["b", "a"])
    assert second < first
    assert places([1.0, 1.0]) == []


# ---- the code


def test_members_share_one_snapshot_and_their_networks_file_is_in_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Editing the network's file while members wait, or between two submissions, changes nothing for any of them."""
    shutil.copy(NETWORK, shop.folder / "net.py")
    shop.run(model={"source": "python:net.py:small"})
    for words in (["init", "-q"], ["add", "net.py"], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"]):
        subprocess.run(["git", *words], cwd=shop.folder, check=True, timeout=20)
    monkeypatch.chdir(shop.folder)
    sweep = shop.load()
    code, fresh = snapshot_of(sweep, ())
    assert fresh
    found = standing(sweep, code)
    inside = f"python:{sweep.folder.path}/code/files/net.py:small"
    assert [member.run.model.source for member in found.new] == [inside] * 2
    assert [member.name for member in found.new] == names(sweep), "the name is that of the file outside"
    snapshot.take(code)
    write_sweep(sweep)
    write_members(found.new)
    first, second = found.new
    first.rundir.metrics.write_text('{"step": 1}\n')
    first.rundir.mark("DONE", "4 steps", 0, 4)
    # the second began here before, with the file outside
    second.rundir.config.write_text(sweep.members[1].text)
    second.rundir.metrics.write_text('{"step": 1}\n')
    (shop.folder / "net.py").write_text("changed")
    kept, fresh = snapshot_of(sweep, ())
    assert not fresh
    assert (kept.files / "net.py").read_text() == NETWORK.read_text()
    again = standing(sweep, kept)
    assert again.done == [first]
    assert again.new == [sweep.members[1]]


def test_the_example_is_a_sweep(tmp_path: Path) -> None:
    sweep = load_sweep(ROOT / "configs" / "sweeps" / "lr-and-strategy.yaml", [], tmp_path)
    assert len(sweep.members) == 20
    assert {member.run.strategy.kind for member in sweep.members} == {"head", "full"}
    assert all(member.run.train.epochs == 2 for member in sweep.members)


def test_a_section_that_is_set_can_be_searched_and_what_was_set_in_a_searched_section_is_refused(shop: Shop) -> None:
    sweep = shop.load(set={"optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.5}})
    assert [(m.run.optimizer.kind, m.run.optimizer.lr) for m in sweep.members] == [("sgd", 1e-3), ("sgd", 1e-2)]
    said = shop.refused(set={"optimizer.lr": 1.0}, over={"optimizer": [{"kind": "sgd", "lr": 0.1}]})
    assert "'optimizer' holds 'optimizer.lr'" in said


def test_a_lease_that_a_dead_node_left_is_not_a_running_member(shop: Shop) -> None:
    sweep = shop.load()
    write_sweep(sweep)
    write_members(sweep.members)
    rundir = sweep.members[0].rundir
    holder = {"host": "elsewhere", "boot": "", "pid": 1, "started": 0.0, "token": "t", "beat": 3, "since": "", "command": ""}
    rundir.lease.write_text(json.dumps(holder))
    rundir.metrics.write_text("")
    states = {row.name: row.state for row in sweep.folder.rows()[1]}
    assert states[rundir.name] == "running"
    os.utime(rundir.lease, (1e9, 1e9))
    states = {row.name: row.state for row in sweep.folder.rows()[1]}
    assert states[rundir.name] == "killed"
