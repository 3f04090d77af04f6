"""One run at a glance, its logs, and folders that are torn."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from launcher.detail import detail
from launcher.follow import show
from launcher.runs import every
from launcher.table import runs as table
from launcher.verdict import ORDER
from tests.unit.folders import bare
from tests.unit.site import Site
from trainer.config import UserError
from trainer.rundir import RunDir, Sizes


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.chdir(tmp_path)
    return made


def test_status_shows_all_there_is(site: Site) -> None:
    now = time.time()
    lines = [
        {"attempt": 1, "event": "start", "time": now - 900, "step": 0, "world": 2, "host": "node1"},
        {"event": "straggler", "time": now - 800, "rank": 1, "host": "node2", "seconds": 0.5, "median": 0.2, "step": 9},
        {"attempt": 1, "event": "end", "time": now - 600, "state": "REQUEUE", "step": 40, "reason": "SIGUSR1"},
        {"attempt": 2, "event": "start", "time": now - 500, "step": 40, "world": 2, "host": "node1"},
    ]
    site.rundir.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"attempt": 3, "ev')
    site.rundir.bad_nodes.write_text(json.dumps({"node": "node3", "problem": "no GPU\x1b[2J", "job": "12", "restart": 0}) + "\n")
    (site.rundir.checkpoints / "step-00000040").mkdir()
    site.rundir.ranks.mkdir()
    for rank in (0, 1):
        path = site.rundir.ranks / f"rank-{rank:05d}.json"
        path.write_text(json.dumps({"rank": rank, "step": 44 + rank, "host": f"node{rank + 1}", "pid": 77}))
        os.utime(path, (now - rank * 50,) * 2)
    sizes = Sizes(4)
    sizes.refuse("micro_batch", 6, 1, 0, "CUDA out of memory")
    sizes.write(site.rundir)
    site.point(44, **{"val/accuracy": 0.75, "val/loss": 0.3})
    site.event("begin")
    site.lease()
    site.queue("RUNNING", nodes="node[1-2]")
    text = detail(site.rundir).text()
    assert "\x1b" not in text
    for words in (
        "running: process 4242 on node7", "12, partition main, on node[1-2]", "9 min to its time limit",
        "of 6,400 samples (45.0%)", "step 44: accuracy 0.7500, loss 0.3000", "step 40", "0 on node1, process 77, step 44\n",
        "4 at a time (train.micro_batch: auto); too many: 6 on rank 1",
        "1 on node2, process 77, step 45, no sign of life for 50 s", "node3: no GPU",
        "rank 1 on node2: 0.5 s a step, 2.5 times its peers, at step 9",
        "2 ranks on node1, from step 0: stopped at step 40 after 5 min: SIGUSR1", "from step 40: under way", "graft cancel pets",
    ):  # fmt: skip
        assert words in text, f"{words} is not in\n{text}"
    shown = detail(site.rundir).as_json()
    assert json.loads(json.dumps(shown))["stragglers"][0]["rank"] == 1


def test_the_log_of_a_job_is_found_in_the_folder_of_its_sweep(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = site.rundir.path.parent / "sweep" / "log"
    sweep.mkdir(parents=True)
    for name in ("slurm-12_3.out", "slurm-12_30.out"):
        (sweep / name).write_text(f"this is {name}\n")
    site.tool("scontrol", 'touch asked; echo "   StdOut=$PWD/my log.out"')
    for job in ("12_3;touch x", "-h", "12_*", "*"):
        site.rundir.job.write_text(json.dumps({"id": job}))
        with pytest.raises(UserError, match="has written nothing yet"):
            show(site.rundir, 0, job=True)
    assert not Path("asked").exists()
    site.rundir.job.write_text(json.dumps({"id": "12_3"}))
    assert show(site.rundir, 0, job=True) == 0
    assert capsys.readouterr().out == "this is slurm-12_3.out\n"
    site.rundir.job.write_text(json.dumps({"id": "13"}))
    Path("my log.out").write_text("my own script\n")
    assert show(site.rundir, 0, job=True) == 0
    (site.rundir.logs / "slurm-13.out").write_bytes("grün\n".encode() + b"\xff\n")
    assert show(site.rundir, 0, job=True) == 0
    assert capsys.readouterr().out == "my own script\ngrün\n\ufffd\n"


def test_torn_and_hostile_folders_are_shown_all_the_same(tmp_path: Path) -> None:
    contents = {"torn": b'{"step": 3, "sam', "bytes": bytes(range(256)) * 200, "list": b"[1]\n3\nnull\n", "empty": b""}
    for name, content in contents.items():
        rundir = bare(tmp_path, f"run-{name}")
        for file in (rundir.summary, rundir.metrics, rundir.job, rundir.jobs, rundir.attempts, rundir.lease):
            file.write_bytes(content)
        (rundir.path / "FAILED").write_bytes(content)
    for kind in ("summary", "metrics", "job"):
        folder = bare(tmp_path, f"folder-{kind}")
        getattr(folder, kind).mkdir()
    odd = bare(tmp_path, "odd")
    odd.summary.write_text('{"best": [1], "total_samples": "many", "final": 3}')
    odd.metrics.write_text('{"step": "x", "samples": null, "val/accuracy": "high"}\n{"step": true}\n')
    found = every(tmp_path / "runs")
    assert len(found) == 8
    assert {run.state for run in found} <= set(ORDER)
    for run in found:
        detail(RunDir(Path(run.folder))).text()
    assert "run-torn" in table(found)
