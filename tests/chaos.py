"""Kills a run at random instants N times and compares every loss and the final state to the bit: `make chaos N=100`.

Runs of one and of two ranks by turns; each is killed again and again, at a random time after its start, with kill -9 to a random
rank, until it comes through by itself; then its record and the hashes of its final state must equal those of the run that nobody
touched. Every checkpoint on disk is verified after every kill.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.trainers import Zygote, run_file, same
from trainer.checkpoint.store import Store, verify

SECTIONS = {"train": {"steps": 400}, "data": {"workers": 0}}
LONGEST = 4.0  # seconds after the start at which a kill comes at the latest


def kill_once(zygote: Zygote, run: Path, runs: Path, world: int, draw: random.Random) -> bool:
    """Start the run and kill a rank at a random instant; false when it was done before."""
    ranks = zygote.start(run, runs, world=world)
    deadline = time.monotonic() + draw.uniform(0.05, LONGEST)
    victim = draw.choice(ranks)
    while time.monotonic() < deadline:
        if zygote.ask({"do": "wait", "pid": victim.pid, "timeout": 0})["code"] is not None:
            zygote.clean()
            return False
        time.sleep(0.01)
    victim.send(signal.SIGKILL)
    time.sleep(0.05)
    zygote.clean()  # what a launcher does with the ranks that are left
    for path in Store(runs / "run" / "checkpoints", keep=1).steps().values():
        verify(path)
    return True


def main(kills: int, seed: int) -> int:
    """Returns 0 when every run ended as the reference did."""
    draw = random.Random(seed)
    zygote = Zygote()
    home = Path(tempfile.mkdtemp(prefix="graft-chaos-"))
    began, done, runs = time.monotonic(), 0, 0
    try:
        references = {}
        for world in (1, 2):
            folder = home / f"reference{world}"
            assert zygote.run(run_file(folder, **SECTIONS), folder, world=world) == [0] * world
            references[world] = folder / "run"
        while done < kills:
            world = 1 + runs % 2
            folder = home / f"run{runs}"
            run = run_file(folder, **SECTIONS)
            survived = 0
            while done < kills and survived < 12 and kill_once(zygote, run, folder, world, draw):
                done += 1
                survived += 1
                rate = done / (time.monotonic() - began)
                print(f"\r{done}/{kills} kills, {runs} runs compared, {(kills - done) / rate:.0f} s left ", end="", flush=True)
            # The one whose answer was already taken is done; any other goes on to its end.
            if zygote.run(run, folder, world=world) != [0] * world:
                print(f"\nthe run in {folder} does not end; it is kept")
                return 1
            same(folder / "run", references[world])
            runs += 1
            shutil.rmtree(folder)
    finally:
        zygote.close()
    shutil.rmtree(home)
    print(f"\n{done} kills (seed {seed}), {runs} runs: every point and every final hash equals the uninterrupted run's")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, int(sys.argv[2]) if len(sys.argv) > 2 else 0))
