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
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import peers, results
from benchmarks.results import HERE, Section

# in the order of the table; of those that leave no sections the lines that they print are kept
ROWS = {
    "loop": "1", "frozen": "2", "loader": "3", "checkpoint": "4", "startup": "5", "sweep": "7", "kill": "8", "memory": "9",
    "gpu": "G1",
}  # fmt: skip
OTHERS = ("diffusion", "runs", "split", "stop")  # graft alone, or against a loop by hand: by name or with --full
GPU = ("gpu",)


def tells(name: str) -> bool:
    """Whether a measurement takes the common options and leaves sections."""
    spec = importlib.util.find_spec(f"benchmarks.{name}")
    assert spec is not None
    assert spec.origin is not None
    return "results.options(" in Path(spec.origin).read_text(encoding="utf-8")


def run(command: Sequence[str]) -> tuple[int, str, list[str]]:
    """Exit code, what was printed, and the last lines of the progress, which is shown while it comes."""
    with tempfile.TemporaryFile("w+") as out:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        process = subprocess.Popen(command, cwd=HERE.parent, stdout=out, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        last: deque[str] = deque(maxlen=20)
        for line in process.stderr:
            sys.stderr.write(line)
            last.append(line.rstrip())
        code = process.wait()
        out.seek(0)
        return code, out.read(), list(last)


def measure(name: str, flags: Sequence[str]) -> tuple[list[Section], bool]:
    """The sections of a measurement, and whether it succeeded."""
    given = [f"benchmarks.{name}", *(flags if tells(name) else [])]
    command, number = f"python -m {' '.join(given)}", ROWS.get(name, "–")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sections.json"
        code, said, last = run([sys.executable, "-m", *given, *(["--json", str(out)] if tells(name) else [])])
        print(said, flush=True)
        if code:
            lines = [f"It failed with exit code {code}:", "", "```", *said.splitlines()[-20:], *last, "```"]
            return [Section(number, name, lines, "", command)], False
        if out.exists():
            return [Section(**section) for section in json.loads(out.read_text(encoding="utf-8"))], True
        return [Section(number, name, ["```", *said.splitlines(), "```"], "", command)], True


def chosen_names(names: Sequence[str], *, full: bool, gpu: bool) -> list[str]:
    """What to run, in order. SystemExit for a name that is none."""
    known = [name for name in (*ROWS, *OTHERS) if importlib.util.find_spec(f"benchmarks.{name}") is not None]
    for name in names:
        if name not in known:
            raise SystemExit(f"there is no measurement '{name}'; there are: {', '.join(known)}")
    return [n for n in known if n in names or (not names and (full or n not in OTHERS) and (gpu or n not in GPU))]


def everywhere() -> dict[str, str]:
    """Versions as the peers' environment has them, which sees graft's; its own where the peers are not there."""
    if not peers.PYTHON.exists():
        return results.versions()
    code = "import json; from benchmarks import results; print(json.dumps(results.versions()))"
    done = subprocess.run([str(peers.PYTHON), "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def write(
    sections: Sequence[Section], machine: dict[str, Any], names: Sequence[str], flags: Sequence[str], seconds: float, out: Path
) -> None:  # fmt: skip
    """RESULTS.md, and beside it the same as JSON."""
    versions = everywhere()
    where = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {', '.join(machine['gpus']) or 'no GPU'}"
    )
    load = ", ".join(str(value) for value in machine["load"])
    kind = " with small settings (the figures mean little)" if "--quick" in flags else ""
    command = " ".join(["python -m benchmarks", *names, *flags])
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
    parser.add_argument("--out", type=Path, help="write there (default: RESULTS.md for all of them, nothing for some)")
    chosen = parser.parse_args(argv)
    if chosen.quick and chosen.full:
        parser.error("--quick and --full are opposites: give one of them")
    out = chosen.out or (None if chosen.names else HERE / "RESULTS.md")
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
        if out is not None:  # after each: what is there is kept, whatever comes
            write(sections, machine, chosen.names, flags, time.monotonic() - began, out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
