"""A process that records and mirrors steps as a training does: FOLDER FROM TO COMMIT_EVERY [hang]."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from trainer.rundir import Record, RunDir
from trainer.track import WandbSink


def point(step: int) -> dict[str, float]:
    return {"samples": step * 8, "step": step, "epoch": step / 10, "time": float(step), "train/loss": 1 / step}


def main() -> None:
    folder = RunDir(Path(sys.argv[1]))
    first, last, every = map(int, sys.argv[2:5])
    record = Record(folder.metrics, points=first - 1)
    sink = WandbSink(folder, folder.load())
    for step in range(first, last + 1):
        record.append(point(step))
        sink.log(point(step))
        if step % every == 0:
            record.sync()
            sink.commit(step)
    if sys.argv[5:]:
        while not (folder.path / "wandb" / "cursor.json").exists():
            time.sleep(0.05)
        print("ready", flush=True)
        time.sleep(60)
    sink.finish(20)


if __name__ == "__main__":
    main()
