"""Killed with -9 at a random step and started again to the same end: `python -m benchmarks.kill`.

graft, the Hugging Face Trainer (resume_from_checkpoint), Lightning (ckpt_path) and Accelerate (load_state and
skip_first_batches), each a training of 200 steps with shuffling and dropout and a checkpoint every 20. Compared with the
same training that nobody touched: every loss, the final weights, and how many steps were taken twice.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import peers, results
from benchmarks.kill_peers import EVERY, STEPS
from tests.trainers import ROOT, hashes, run_file
from trainer.rundir import RunDir, read_points

LIMIT = 300.0
PEERS = {"Hugging Face Trainer": "trainer", "Lightning": "lightning", "Accelerate": "accelerate"}


@dataclass
class Training:
    """Of one kind in a folder; `losses` and `end` are what it has left there."""

    kind: str
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Begin, or go on."""
        if self.kind == "graft":
            run = run_file(
                self.folder, train={"steps": STEPS, "global_batch": 24}, checkpoint={"every": f"{EVERY} steps", "keep": 2},
                model={"args": {"dropout": 0.2}},
            )  # fmt: skip
            command = [sys.executable, "-m", "launcher", "train", str(run), "--runs", str(self.folder)]
        else:
            command = [str(peers.PYTHON), "-m", "benchmarks.kill_peers", PEERS[self.kind], str(self.folder / "run")]
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.folder / "out.txt").open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )  # fmt: skip

    def losses(self) -> list[tuple[int, float]]:
        """Step and loss in the order of taking them."""
        if self.kind == "graft":
            points = read_points(self.folder / "run" / "metrics.jsonl")
            return [(p["step"], p["train/loss"]) for p in points if "train/loss" in p]
        path = self.folder / "run" / "losses.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        pairs = (line.split() for line in lines)
        return [(int(pair[0]), float(pair[1])) for pair in pairs if len(pair) == 2]

    def end(self) -> object:
        """What the final weights are known by."""
        return hashes(self.folder / "run") if self.kind == "graft" else (self.folder / "run" / "end.txt").read_text()

    def wait(self) -> bool:
        """Whether it came to its end."""
        assert self.process is not None
        return self.process.wait(LIMIT) == 0

    def kill_at(self, step: int) -> int:
        """Kill it once it has noted a step; the last step that it noted."""
        assert self.process is not None
        deadline = time.monotonic() + LIMIT
        while max((at for at, _ in self.losses()), default=0) < step:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.kind} did not reach step {step}:\n{(self.folder / 'out.txt').read_text()[-3000:]}")
            time.sleep(0.002)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return max(at for at, _ in self.losses())

    def went_on_from(self, noted: int) -> int:
        """The step after which it went on, where `noted` losses were there before."""
        if self.kind == "graft":
            return int([e["step"] for e in read_points(RunDir(self.folder / "run").attempts) if e.get("event") == "start"][-1])
        return self.losses()[noted][0] - 1


def judge(kind: str, home: Path, steps: Sequence[int]) -> tuple[list[str], dict[str, object]]:
    """The cells of a contestant."""
    whole = Training(kind, home / "whole")
    whole.start()
    if not whole.wait():
        raise SystemExit(f"{kind} does not train:\n{(home / 'whole' / 'out.txt').read_text()[-3000:]}")
    expected = dict(whole.losses())
    ended, equal, same, repeated, worst = 0, 0, 0, list[int](), 0.0
    for number, step in enumerate(steps):
        training = Training(kind, home / f"killed{number}")
        training.start()
        at = training.kill_at(step)
        noted = len(training.losses())
        training.start()
        if not training.wait():
            print(f"{kind} did not come to its end:\n{(training.folder / 'out.txt').read_text()[-2000:]}", file=sys.stderr)
            continue
        ended += 1
        repeated.append(at - training.went_on_from(noted))
        found = dict(training.losses())
        off = max((abs(found[key] - expected[key]) for key in expected if key in found), default=0.0)
        equal += found == expected
        worst = max(worst, off)
        same += training.end() == whole.end()
    count = len(steps)
    cells = [
        kind,
        f"{ended} of {count}",
        f"{equal} of {count}",
        f"{worst:.2g}",
        f"{same} of {count}",
        ", ".join(map(str, repeated)) or "–",
    ]
    figures = {"ended": ended, "losses_equal": equal, "largest": worst, "weights_equal": same, "repeated": repeated}
    return cells, figures


def main(argv: Sequence[str] | None = None) -> int:
    chosen = results.options("benchmarks.kill", __doc__, argv)
    if not peers.PYTHON.exists():
        raise SystemExit("Lightning is not there; make the peers' environment: python -m benchmarks.peers")
    draw = random.Random(0)
    steps = [draw.randint(EVERY + 2, STEPS - 15) for _ in range(results.pick(chosen, 1, 2, 10))]
    lines = [
        f"{STEPS} steps, a checkpoint every {EVERY}, kill -9 at steps {', '.join(map(str, steps))}.",
        "",
        "| | came to its end | losses equal to the bit | off by at most | final weights equal | steps taken twice |",
        "|---|---|---|---|---|---|",
    ]
    figures = {}
    for kind in ["graft", *PEERS]:
        with tempfile.TemporaryDirectory() as name:
            cells, figures[kind] = judge(kind, Path(name), steps)
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    goal = "equal to the bit; at most one interval again"
    command = results.command("benchmarks.kill", chosen)
    return results.finish([results.Section("8", "kill -9 at a random step", lines, goal, command, figures)], chosen)


if __name__ == "__main__":
    sys.exit(main())
