"""The rooms keep to themselves, and the commands that should start at once import nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "sklearn", "wandb", "numpy", "accelerate"}


def imported(arguments: list[str], folder: Path) -> set[str]:
    """The top-level modules in memory after a graft command that must succeed."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['graft', *{arguments!r}]\n"
        "from launcher.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('MODULES', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_the_import_rules_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_imports_neither_torch_nor_the_run_file(tmp_path: Path) -> None:
    modules = imported(["--help"], tmp_path)
    assert not modules & (HEAVY | {"pydantic", "yaml", "psutil"})


def test_a_training_waits_for_no_library_that_it_may_not_use() -> None:
    """Each of them takes from a tenth of a second to some seconds, at each start of each rank."""
    code = "import sys, trainer.session; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    few = {"accelerate", "datasets", "deepspeed", "diffusers", "peft", "scipy", "sklearn", "timm", "torchmetrics", "transformers"}
    assert not set(done.stdout.split()) & {*few, "wandb"}


@pytest.mark.parametrize(
    "arguments", [["plan", "run.yaml", "--no-memory"], ["plan", "run.yaml", "--no-memory", "--json"], ["schema"], ["runs"]]
)
def test_no_torch_before_training(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "run.yaml").write_text(
        "name: x\nmodel: {source: 'torchvision:resnet18'}\nstrategy: {kind: full}\ndata: {train: 'digits:0-4/train'}\n"
        "optimizer: {kind: sgd, lr: 0.1}\nparallel: {device: cpu}\n"
    )
    assert not imported(arguments, tmp_path) & HEAVY
