"""One self-contained HTML page of one run or several, made from their folders alone."""

from __future__ import annotations

from pathlib import Path

from trainer.report.page import page
from trainer.report.read import default_output, read_runs
from trainer.report.sweep import sweep_page
from trainer.rundir import RunDir, write_atomically
from trainer.rundir.sweep import SweepDir

__all__ = ["default_output", "write_report", "write_sweep_report"]


def write_report(folders: list[RunDir], out: Path) -> Path:
    """Write the report of some run folders to the file `out` and return it. Torch-free.

    Several runs are laid over one another and compared in a table. What a folder does not have (yet) is left out.
    Raises UserError when a folder holds no run.
    """
    text = page(read_runs(folders))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    return out


def write_sweep_report(folder: SweepDir, out: Path) -> Path:
    """Write the report of a sweep to the file `out` and return it: its members, the best first, and what each setting did."""
    metric, rows = folder.write_results()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, sweep_page(folder, metric, rows))
    return out
