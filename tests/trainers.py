"""Starts real trainers for tests, one process a rank, and reads what they leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.rundir import RunDir, read_points

ROOT = Path(__file__).resolve().parents[1]
NETWORK = ROOT / "tests" / "network.py"
LIMIT = 60.0

RUN = {
    "name": "run",
    "model": {"source": f"python:{NETWORK}:small", "adapt": {"in_channels": 1, "image_size": 8}},
    "strategy": {"kind": "full"},
    "data": {"train": "digits:0-4/train", "val": "digits:0-4/val", "workers": 0, "normalize": "half",
             "augment": {"crop": "pad", "padding": 1, "flip": 0.5}},
    "optimizer": {"kind": "adamw", "lr": 1e-3},
    "schedule": {"kind": "cosine", "warmup": 0.1},
    "train": {"steps": 40, "global_batch": 24, "ema": 0.9, "clip": 1.0},
    "parallel": {"device": "cpu", "threads": 1, "timeout": 30},
    "evaluate": {"every": "15 steps", "show": 4},
    "checkpoint": {"every": "7 steps", "keep": 2},
    "track": {"every": 1},
}  # fmt: skip


def run_file(folder: Path, **sections: Any) -> Path:
    """A run file of the tests' run with some sections changed (a dict updates a section, another value replaces it)."""
    run = json.loads(json.dumps(RUN))
    for name, value in sections.items():
        run[name] = {**run[name], **value} if isinstance(value, dict) and isinstance(run.get(name), dict) else value
    path = folder / "run.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run), encoding="utf-8")
    return path


@dataclass
class Rank:
    """A started trainer process."""

    zygote: Zygote
    pid: int
    output: Path

    def wait(self, timeout: float = LIMIT) -> int:
        """Its exit code (-n for signal n); AssertionError when it does not end."""
        code = self.zygote.ask({"do": "wait", "pid": self.pid, "timeout": timeout})["code"]
        assert code is not None, f"still running after {timeout} s:\n{self.text()}"
        return int(code)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


@dataclass
class Zygote:
    """The process that forks trainers; see tests/zygote.py."""

    started: list[Rank] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 120)
        assert ready, "the zygote does not answer"
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def preload(self, *names: str, env: dict[str, str] | None = None) -> None:
        """Import once what trainers would import each time."""
        self.ask({"do": "import", "names": names, "env": env or {}})

    def start(
        self, target: Path, runs: Path, *, world: int = 1, fault: str = "", args: tuple[str, ...] = (),
        constants: Mapping[str, float | str] | None = None, env: dict[str, str] | None = None,
    ) -> list[Rank]:  # fmt: skip
        """Start the ranks of a run file (or folder); `fault` arms GRAFT_FAULT, `constants` (module.NAME) get other values.

        `{rank}` in a value of `env` is the rank's own.
        """
        environment = {"GRAFT_FAULT": fault, **(env or {})}
        if world > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            environment |= {
                "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)
            }  # fmt: skip
        ranks = []
        for rank in range(world):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
            own |= {key: value.replace("{rank}", str(rank)) for key, value in environment.items() if "{rank}" in value}
            runs.mkdir(parents=True, exist_ok=True)
            output = runs / f"out-{len(self.started)}-{rank}.txt"
            argv = ["train", str(target), "--runs", str(runs), *args]
            answer = self.ask({"do": "start", "argv": argv, "env": environment | own, "cwd": str(runs), "output": str(output),
                               "constants": dict(constants or {})})  # fmt: skip
            ranks.append(Rank(self, answer["pid"], output))
            self.started.append(ranks[-1])
        return ranks

    def run(
        self, target: Path, runs: Path, *, world: int = 1, fault: str = "", args: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> list[int]:  # fmt: skip
        """Start and wait; the exit codes by rank."""
        return [rank.wait() for rank in self.start(target, runs, world=world, fault=fault, args=args, env=env)]

    def clean(self) -> None:
        """No trainer outlives its test."""
        for rank in self.started:
            self.ask({"do": "kill", "pid": rank.pid})
        self.started.clear()

    def close(self) -> None:
        self.clean()
        self._process.communicate(timeout=10)


def points(folder: Path) -> list[dict[str, Any]]:
    """The record without the times."""
    return [
        {k: v for k, v in p.items() if k != "time" and not k.startswith(("checkpoint/", "speed/"))}
        for p in read_points(folder / "metrics.jsonl")
    ]


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of the tensors' files of the newest checkpoint: parameters, buffers, average, optimizer."""
    newest = max((folder / "checkpoints").glob("step-*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(newest.glob("*.safetensors"))}


def same(folder: Path, reference: Path) -> None:
    """Every point of the record and every byte of the final state are equal to those of the uninterrupted run."""
    assert points(folder) == points(reference)
    assert hashes(folder) == hashes(reference)
    marker = RunDir(folder).marker()
    assert marker is not None
    assert marker.state == "DONE"


def step_of(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*")), default=0)


def wait_for_step(folder: Path, step: int, rank: int = 0, timeout: float = LIMIT) -> dict[str, Any]:
    """Wait until a rank's heartbeat shows a step; returns the heartbeat."""
    path = RunDir(folder).ranks / f"rank-{rank:05d}.json"
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            beat: dict[str, Any] = json.loads(path.read_text())
            if beat["step"] >= step:
                return beat
        time.sleep(0.02)
    raise AssertionError(f"rank {rank} of {folder} did not reach step {step}")
