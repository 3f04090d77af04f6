"""Every measurement against its peers, and the table: `python -m benchmarks [NAME ...] [--quick | --full]`.

Each runs in a process of its own, in the environment that it needs, and leaves its sections; all of them with versions and
machine become benchmarks/RESULTS.md and RESULTS.json. The peers' environment is made first. One that fails is named in the
table, and the exit code is 1; the others are measured all the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import peers, results
from benchmarks.results import HERE, Section

# in the order of the table; of those that have no `--json` the lines that they print are kept
ROWS = {
    "loop": "1", "frozen": "2", "loader": "3", "checkpoint": "4", "startup": "5", "sweep": "7", "kill": "8", "memory": "9",
    "gpu": "G1",
}  # fmt: skip
OTHERS = ("diffusion", "runs", "split", "stop")  # graft alone, or against a loop by hand: by name or with --full
GPU = ("gpu",)
TOLD = (*(name for name in ROWS if name != "loader"), "diffusion")


def measure(name: str, flags: Sequence[str]) -> tuple[list[Section], bool]:
    """The sections of a measurement, and whether it succeeded."""
    command = f"python -m benchmarks.{name}" + "".join(f" {flag}" for flag in flags)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sections.json"
        words = [sys.executable, "-m", f"benchmarks.{name}", *flags]
        told = name in TOLD
        done = subprocess.run(
            [*words, "--json", str(out)] if told else [sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent,
            stdout=subprocess.PIPE, stderr=None, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )  # fmt: skip
        print(done.stdout, flush=True)
        if done.returncode:
            said = ["It failed:", "", "```", *done.stdout.splitlines()[-20:], f"exit code {done.returncode}", "```"]
            return [Section(ROWS.get(name, "–"), name, said, "", command)], False
        if out.exists():
            return [Section(**section) for section in json.loads(out.read_text(encoding="utf-8"))], True
        return [Section(ROWS.get(name, "–"), name, ["```", *done.stdout.splitlines(), "```"], "", command)], True


def chosen_names(names: Sequence[str], *, full: bool, gpu: bool) -> list[str]:
    """What to run, in order. SystemExit for a name that is none."""
    known = [name for name in (*ROWS, *OTHERS) if importlib.util.find_spec(f"benchmarks.{name}") is not None]
    for name in names:
        if name not in known:
            raise SystemExit(f"there is no measurement '{name}'; there are: {', '.join(known)}")
    return [n for n in known if n in names or (not names and (full or n not in OTHERS) and (gpu or n not in GPU))]


def write(sections: Sequence[Section], machine: dict[str, Any], flags: Sequence[str], seconds: float, out: Path) -> None:
    """RESULTS.md, and beside it the same as JSON."""
    versions = results.versions()
    where = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {', '.join(machine['gpus']) or 'no GPU'}"
    )
    load = ", ".join(str(value) for value in machine["load"])
    kind = " with small settings (the figures mean little)" if "--quick" in flags else ""
    command = "python -m benchmarks" + "".join(f" {flag}" for flag in flags)
    head = [
        "# Measured beside others",
        "",
        f"Written by `{command}`{kind} on {machine['day']} in {seconds / 60:.0f} min.",
        "",
        f"- Machine: {where}; {machine['system']}; load at the start {load}.",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        "- Contestants take turns (A B C C B A); ratios are of neighbours; the control is the first against itself. Medians with "
        "quartiles. A difference under 3% is not claimed from fewer than 40 pairs.",
        "",
    ]
    out.write_text("\n".join([*head, *(section.markdown() for section in sections)]), encoding="utf-8")
    whole = {
        "machine": machine,
        "versions": versions,
        "flags": list(flags),
        "sections": [asdict(section) for section in sections],
    }
    out.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="which (default: all against peers that this machine can)")
    parser.add_argument("--quick", action="store_true", help="small settings: shows that all work")
    parser.add_argument("--full", action="store_true", help="as many pairs as a claim under 3%% needs; takes hours")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    chosen = parser.parse_args(argv)
    if chosen.quick and chosen.full:
        parser.error("--quick and --full are opposites: give one of them")
    machine = results.machine()
    names = chosen_names(chosen.names, full=chosen.full, gpu=bool(machine["gpus"]))
    peers.make()
    flags = ["--quick"] * chosen.quick + ["--full"] * chosen.full
    began, sections, good = time.monotonic(), list[Section](), True
    for name in names:
        print(f"# {name}", file=sys.stderr, flush=True)
        found, ended = measure(name, flags)
        sections += found
        good = good and ended
        write(sections, machine, flags, time.monotonic() - began, chosen.out)  # what is there is kept, whatever comes
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
