"""How long `--help` takes, a plan without memory, and from a command to the first step: `python -m benchmarks.startup`.

graft beside torchrun, Accelerate and DeepSpeed, which start the same bare script (`benchmarks/script.py`); `python script.py` is
what one process costs without any. graft trains the same network on the same pictures from a run file. All commands are of
graft's own environment; the time of the first step is what the process itself noted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from benchmarks import paired, results

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
GRAFT = [PYTHON, "-m", "launcher"]
TORCHRUN = [PYTHON, "-m", "torch.distributed.run"]
ACCELERATE = [PYTHON, "-m", "accelerate.commands.accelerate_cli", "launch"]
DEEPSPEED = [PYTHON, "-m", "deepspeed.launcher.runner"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
PLAN = {
    "name": "plan", "model": {"source": "torchvision:resnet50", "weights": "DEFAULT"}, "strategy": {"kind": "head"},
    "optimizer": {"kind": "adam", "lr": 1e-3},
}  # fmt: skip


def seconds(command: Sequence[str], folder: Path | None = None) -> float:
    """The wall time of a command, which must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=folder)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return took


def imports_torch(arguments: Sequence[str]) -> bool:
    code = (
        "import sys; from launcher.cli import main\n"
        f"sys.argv = ['graft', *{list(arguments)!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    return subprocess.run([PYTHON, "-c", code], stdout=subprocess.DEVNULL, env=ENVIRONMENT).returncode != 0


def pictures(folder: Path, count: int, size: int) -> None:
    """PNG files of ten classes."""
    for number in range(count):
        path = folder / f"class{number % 10}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (number % 256, 25 * (number % 10), 99)).save(path)


def helps(folder: Path, passes: int) -> tuple[list[str], dict[str, object]]:
    """The lines and times of the commands that start no training."""
    pictures(folder / "train", 900, 8)
    pictures(folder / "val", 100, 8)
    run = folder / "plan.yaml"
    data = {"train": f"folder:{folder}/train", "val": f"folder:{folder}/val"}
    run.write_text(json.dumps({**PLAN, "data": data}), encoding="utf-8")
    plan = ["plan", str(run), "--no-memory"]
    commands = {
        "`graft --help`": [*GRAFT, "--help"], "`python -c pass`": [PYTHON, "-c", "pass"],
        "`graft plan --no-memory`": [*GRAFT, *plan],
        "`torchrun --help`": [*TORCHRUN, "--help"], "`accelerate launch --help`": [*ACCELERATE, "--help"],
        "`deepspeed --help`": [*DEEPSPEED, "--help"],
    }  # fmt: skip
    timed = {name: lambda words=words: seconds(words) for name, words in commands.items()}
    measured = paired.measure(timed, passes, warm=passes > 1)
    for arguments in (["--help"], plan):
        if imports_torch(arguments):
            raise SystemExit(f"graft {arguments[0]} imports torch")
    lines = ["graft imports no torch in either. The plan is of 1,000 images.", "", *paired.table(measured, "s")]
    return lines, {"seconds": measured.times}


def firsts(folder: Path, passes: int, world: int) -> tuple[list[str], dict[str, object]]:
    """The lines and times from a command to the first step."""
    if not (folder / "pictures").exists():
        pictures(folder / "pictures", 64, 32)
    model = {"source": f"python:{ROOT}/benchmarks/resnet20.py:resnet20", "weights": "none", "adapt": {"image_size": 32}}
    run = {
        "name": "first", "model": model, "strategy": {"kind": "full"},
        "data": {"train": f"folder:{folder}/pictures", "normalize": "half", "workers": 0},
        "optimizer": {"kind": "adamw", "lr": 1e-3}, "train": {"steps": 2, "global_batch": 32}, "track": {"every": 1},
        "parallel": {"device": "cpu", "threads": 1, "processes": world},
    }  # fmt: skip
    (folder / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
    machine: dict[str, object] = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU" if world > 1 else "NO", "num_machines": 1,
        "num_processes": world, "use_cpu": True, "mixed_precision": "no", "main_process_port": 29612,
        "main_process_ip": "127.0.0.1", "rdzv_backend": "static", "machine_rank": 0, "dynamo_config": {},
    }  # fmt: skip
    (folder / "accelerate.yaml").write_text(json.dumps(machine), encoding="utf-8")
    out = folder / "first.txt"
    script = [str(ROOT / "benchmarks" / "script.py"), str(folder / "pictures"), str(out)]
    number = 0

    def graft() -> float:
        nonlocal number
        number += 1
        began = time.time()
        seconds([*GRAFT, "train", str(folder / "run.yaml"), f"name=first{world}-{number}", "--runs", str(folder / "runs")])
        record = folder / "runs" / f"first{world}-{number}" / "metrics.jsonl"
        points = [json.loads(line) for line in record.read_text().splitlines()]
        return float(next(p["time"] for p in points if "train/loss" in p)) - began

    def started(command: Sequence[str]) -> float:
        out.unlink(missing_ok=True)
        began = time.time()
        seconds(command)
        ranks, first = out.read_text().split()
        if int(ranks) != world:
            raise SystemExit(f"{' '.join(command)} started {ranks} ranks instead of {world}")
        return float(first) - began

    launchers = {
        "torchrun": [*TORCHRUN, f"--nproc-per-node={world}", "--master-port=29611"],
        "accelerate launch": [*ACCELERATE, f"--config_file={folder}/accelerate.yaml"],
        "deepspeed": [*DEEPSPEED, f"--num_gpus={world}", "--master_port=29613"],
    }  # fmt: skip
    contestants: dict[str, Callable[[], float]] = {} if world > 1 else {"python script.py": lambda: started([PYTHON, *script])}
    contestants["graft train"] = graft
    for name, words in launchers.items():
        contestants[name] = lambda words=words: started([*words, *script])  # type: ignore[misc]
    measured = paired.measure(contestants, passes, warm=passes > 1)
    return paired.table(measured, "s to the first step", difference=world == 1), {"seconds": measured.times}


def main(argv: Sequence[str] | None = None) -> int:
    chosen = results.options("benchmarks.startup", __doc__, argv)
    again = results.command("benchmarks.startup", chosen)
    passes = results.pick(chosen, 1, 2, 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines, figures = helps(folder, passes)
        sections = [results.Section("5", "What a command takes", lines, "help 100 ms, plan 300 ms", again, figures)]
        for world in (1, 2):
            lines, figures = firsts(folder, results.pick(chosen, 1, 1, 10), world)
            goal = "0.5 s over the bare python" if world == 1 else ""
            title = f"From the command to the first step, {world} rank{'s' * (world > 1)}"
            sections.append(results.Section("6", title, lines, goal, again, figures))
    return results.finish(sections, chosen)


if __name__ == "__main__":
    sys.exit(main())
