"""The commands as a shell runs them: output, exit codes, times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from launcher.demo import commands
from trainer.config import load
from trainer.config.yamlfile import parse
from trainer.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
RUN = """\
name: pets
model: {source: "torchvision:resnet18"}
strategy: {kind: head}
data: {train: "folder:images", val: "split:0.25"}
optimizer: {kind: adam, lr: 1e-3}
train: {epochs: 2, global_batch: 4}
parallel: {device: cpu}
"""


class Shell:
    """A folder to run graft in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0
        for name in ("cat", "dog"):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(8):
                Image.new("L", (8, 8), number).save(folder / "images" / name / f"{number}.png")
        (folder / "pets.yaml").write_text(RUN)

    def graft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if arguments[:1] == ("plan",):  # what learns is told by the trainer, which takes its time; see test_describe
            arguments = (*arguments, "--no-memory")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}, check=False,
        )  # fmt: skip
        self.seconds = time.monotonic() - began
        return done

    def fails(self, code: int, *arguments: str) -> str:
        """The message of a command that must fail in words, in time, and without leaving a run folder."""
        done = self.graft(*arguments)
        assert done.returncode == code, done.stderr
        assert self.seconds < 5
        assert "Traceback" not in done.stderr
        assert not list(self.folder.glob("runs/*/run.yaml"))
        return done.stderr


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def quickest(shell: Shell, limit: float, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command until it stays within a limit, ten times at most; AssertionError when it never does.

    The limit is for a machine that starts a bare Python in 0.03 s; it grows where, just then, that takes longer.
    """
    times = []
    for _ in range(10):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-S", "-c", "import json, argparse"], check=True)
        pace = max(1.0, (time.perf_counter() - began) / 0.03)
        done = shell.graft(*arguments)
        assert done.returncode == 0, done.stderr
        if shell.seconds < limit * pace:
            return done
        times.append((shell.seconds, pace))
    raise AssertionError(f"{arguments}: seconds and pace {times}, limit {limit}")


def test_help_is_there_at_once(shell: Shell) -> None:
    done = quickest(shell, 0.25, "--help")
    assert all(name in done.stdout for name in ("train", "plan", "demo", "evaluate", "export", "report", "schema", "logs"))


def test_a_plan_takes_half_a_second_for_a_thousand_images(shell: Shell) -> None:
    for number in range(1000):
        (shell.folder / "images" / "cat" / f"more-{number}.png").hardlink_to(shell.folder / "images" / "cat" / "0.png")
    done = quickest(shell, 0.5, "plan", "pets.yaml")
    assert "762 samples of 2 classes (6 to 756 a class), 254 for validation" in done.stdout


def test_a_plan_for_people_and_for_scripts(shell: Shell) -> None:
    done = shell.graft("plan", "pets.yaml", "train.micro_batch=1", "--processes", "2", "schedule={kind: cosine, warmup: 0.25}")
    assert done.returncode == 0, done.stderr
    for words in (
        "starts anew in", "torchvision:resnet18", "2 ranks on cpu", "12 samples of 2 classes (6 a class), 4 for validation",
        "4 a step = 2 x 2, in 2 micro-batches of 1", "6 = 24 samples = 2 epochs", "every 1 epoch (2 times)", "6 samples",
    ):  # fmt: skip
        assert words in done.stdout
    values = json.loads(shell.graft("plan", "pets.yaml", "train.epochs=1.5", "--json").stdout)
    assert (values["steps"], values["samples"], values["tail"], values["shares"]) == (5, 20, 2, [4])
    assert not (shell.folder / "runs").exists(), "a plan writes nothing"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pets.yaml", "train.epcohs=3"], "unknown key 'train.epcohs'; did you mean 'epochs'?"),
        (["pets.yaml", "train.deterministic=no"], "must be true or false, not 'no'; write false"),
        (["pets.yaml", "resources.time=12:30"], "'resources.time' is '12:30': write hours:minutes:seconds"),
        (["pets.yaml", "name=../x"], "'name' is '../x'"),
        (["pets.yaml", "name='$(touch ran)'"], "'name' is '$(touch ran)'"),
        (["pets.yaml", 'name="a\\n#SBATCH x"'], "'name' is 'a\\n#SBATCH x'"),
        (["pets.yaml", "name='a;touch ran'"], "'name' is 'a;touch ran'"),
        (["pets.yml"], "pets.yml: no such run file; did you mean 'pets.yaml'?"),
        (["pets"], "pets: no such run file, and no run folder"),
        (["images"], "images: no run folder"),
        (["pets.yaml", "data.train=folder:imagse"], "imagse: no such folder"),
        (["pets.yaml", "data.min_per_class=9"], "cat"),
        (["pets.yaml", "train.precision=fp8"], "write bf16"),
        (["pets.yaml", "train.global_batch=1", "--processes", "2"], "1 / 2 is less than one sample a rank"),
        (["pets.yaml", "parallel.device=cuda"], "no GPU is visible"),
        (["pets.yaml", "model.source=resnet18"], "write SCHEME:NAME, such as torchvision:resnet18"),
        (["pets.yaml", "model.source=python:pets.py:make"], "pets.py: no such file"),
        (["pets.yaml", "model.weights=old.pt"], "old.pt: no such file"),
        (
            ["pets.yaml", "checkpoint.best=val/precision"],
            "which classify does not measure; did you mean 'val/ece'",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(shell: Shell, arguments: list[str], said: str) -> None:
    if "parallel.device=cuda" in arguments and list(Path("/dev").glob("nvidia[0-9]*")):
        arguments, said = ["pets.yaml", "parallel.device=cuda", "parallel.processes=99"], "parallel.processes=99"
    err = shell.fails(2, "plan", *arguments)
    assert err.startswith("graft: ")
    assert said in err
    assert err.count("\n") == 1
    assert not (shell.folder / "ran").exists()


def test_training_refuses_the_same_mistakes_in_the_same_words(shell: Shell) -> None:
    for mistake in ("train.epcohs=3", "data.train=folder:imagse", "train.precision=fp8", "name='a;touch ran'"):
        assert shell.fails(2, "train", "pets.yaml", mistake) == shell.fails(2, "plan", "pets.yaml", mistake)
        assert not (shell.folder / "ran").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RUN + "train: {epochs: 3}\n", "pets.yaml:8: the key 'train' stands twice (first in line 6); keep one"),
        ("a: &a [x]\nb: [*a, *a]\n", "pets.yaml:1: anchors (&) and aliases (*) are not allowed"),
        ("name: !!python/object/apply:os.system ['touch ran']\n", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: &a [x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)), "anchors"),
    ],
)
def test_yaml_that_is_a_trap_is_refused_in_a_second(shell: Shell, text: str, said: str) -> None:
    (shell.folder / "pets.yaml").write_text(text)
    assert said in shell.fails(2, "plan", "pets.yaml")
    assert shell.seconds < 1.5, "with the start of Python"
    assert not (shell.folder / "ran").exists()


def test_a_number_in_any_notation_is_a_number(shell: Shell) -> None:
    for text in ("1e-4", "1E-4", "0.0001", "1.0e-4"):
        (shell.folder / "pets.yaml").write_text(RUN.replace("1e-3", text))
        assert shell.graft("plan", "pets.yaml").returncode == 0
        assert load(shell.folder / "pets.yaml").optimizer.lr == 0.0001


def test_a_mistake_as_json(shell: Shell) -> None:
    done = shell.graft("train", "pets.yaml", "train.epochs=no", "--json")
    error = json.loads(done.stdout)["error"]
    assert error["code"] == done.returncode == 2
    assert "'train.epochs' must be a number" in error["message"]
    assert "'train.epochs' must be a number" in done.stderr


def test_several_nodes_are_refused_with_the_command_that_does_it(shell: Shell) -> None:
    err = shell.fails(3, "train", "pets.yaml", "resources.nodes=2", "parallel.processes=2")
    assert "accelerate launch --multi_gpu --num_machines 2 --num_processes 4" in err
    assert "resources.nodes=1" in err


def test_a_folder_that_cannot_be_written_is_refused(shell: Shell) -> None:
    (shell.folder / "file").touch()
    for place in ("file", "/proc/graft"):
        assert "cannot be written" in shell.fails(3, "train", "pets.yaml", "--runs", place)


def test_other_settings_in_the_same_folder_are_refused_and_shown(shell: Shell) -> None:
    rundir = RunDir(shell.folder / "runs" / "pets")
    rundir.prepare(load(shell.folder / "pets.yaml", [f"data.train=folder:{shell.folder}/images"]), accept_changes=False)
    (rundir.checkpoints / "step-00000004").mkdir()
    planned = shell.graft("plan", "pets.yaml", "optimizer.lr=0.5")
    assert "goes on from step 4" in planned.stdout
    assert "optimizer.lr: 0.001 -> 0.5" in planned.stdout
    done = shell.graft("train", "pets.yaml", "optimizer.lr=0.5")
    assert done.returncode == 3
    assert "optimizer.lr: 0.001 -> 0.5" in done.stderr
    assert "--accept-changes" in done.stderr
    assert load(rundir.config).optimizer.lr == 0.001


def test_a_run_folder_is_planned_by_its_path_and_by_its_name(shell: Shell) -> None:
    rundir = RunDir(shell.folder / "runs" / "pets")
    rundir.prepare(load(shell.folder / "pets.yaml", [f"data.train=folder:{shell.folder}/images"]), accept_changes=False)
    for name in ("pets", "runs/pets", str(rundir.path)):
        assert "starts from the beginning" in shell.graft("plan", name).stdout
    rundir.mark("DONE", "all steps", 0, 6)
    assert "is done already" in shell.graft("plan", "pets").stdout


def test_runs_status_and_logs(shell: Shell) -> None:
    assert "graft demo" in shell.graft("runs").stdout
    rundir = RunDir(shell.folder / "runs" / "pets")
    rundir.prepare(load(shell.folder / "pets.yaml"), accept_changes=False)
    assert "new" in shell.graft("status", "pets").stdout
    points = [
        {"step": 3, "samples": 12, "loss": 0.5},
        {"step": 3, "samples": 12, "val/accuracy": 0.75},
        {"step": 4, "samples": 16},
    ]
    rundir.metrics.write_text("".join(json.dumps(point) + "\n" for point in points) + '{"step": 5, "samp')
    rundir.summary.write_text(json.dumps({"total_samples": 32}))
    assert "killed" in shell.graft("status", "pets").stdout
    rundir.mark("REQUEUE", "SIGTERM", 75, 4)
    table = shell.graft("runs").stdout
    assert all(words in table for words in ("pets", "stopped", "4 (50%)", "val/accuracy 0.7500"))
    rundir.mark("FAILED", "the loss is not finite", 1, 4)
    listed = json.loads(shell.graft("runs", "--json").stdout)
    assert [(r["name"], r["state"], r["step"], r["best"], r["reason"]) for r in listed] == [
        ("pets", "failed", 4, 0.75, "the loss is not finite")
    ]
    assert "left no log" in shell.graft("logs", "pets").stderr
    (rundir.logs / "attempt-001-rank-00001.log").write_text("hello from rank 1\n")
    (rundir.logs / "rank-00001.log").symlink_to("attempt-001-rank-00001.log")
    assert shell.graft("logs", "pets", "--rank", "1").stdout == "hello from rank 1\n"
    assert "did you mean 'pets'?" in shell.graft("status", "pest").stderr


def test_logs_are_followed_into_the_next_attempt(shell: Shell) -> None:
    rundir = RunDir(shell.folder / "runs" / "pets")
    rundir.prepare(load(shell.folder / "pets.yaml"), accept_changes=False)
    (rundir.logs / "attempt-001-rank-00000.log").write_text("first\n")
    link = rundir.logs / "rank-00000.log"
    link.symlink_to("attempt-001-rank-00000.log")
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "logs", "pets", "-f"], cwd=shell.folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    (rundir.logs / "attempt-002-rank-00000.log").write_text("second\n")
    link.unlink()
    link.symlink_to("attempt-002-rank-00000.log")
    assert process.stdout.readline() == "second\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")


def test_the_schema_is_printed_and_valid(shell: Shell) -> None:
    schema = json.loads(shell.graft("schema").stdout)
    Draft202012Validator.check_schema(schema)
    assert not list(Draft202012Validator(schema).iter_errors(parse(RUN, "x").value))


def test_a_wrong_option_shows_the_usage(shell: Shell) -> None:
    assert "No such option" in shell.fails(2, "plan", "pets.yaml", "--jsn")
    assert "Missing argument" in shell.fails(2, "train")


def test_the_demo_names_its_commands_in_full(tmp_path: Path) -> None:
    works = ("pretrain", "head", "full", "scratch", "draw-pretrain", "draw", "draw-scratch")
    files = {work: tmp_path / "my runs" / "demo" / f"{work}.yaml" for work in works}
    lines = commands(files, tmp_path / "my runs")
    assert f"  graft train '{files['head']}' --runs '{tmp_path}/my runs'" in lines
    assert all("--runs" in line for line in lines if line.startswith("  "))
    plain = commands(files, Path("runs"))
    assert "  graft report demo-head demo-full demo-scratch" in plain
    assert "  graft report demo-draw demo-draw-scratch --out drawings.html" in plain


def test_a_full_disk_is_said_without_a_traceback(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    run = tmp_path / "runs" / "try"
    (run / "log").mkdir(parents=True)
    (run / "run.yaml").write_text("name: try\n")
    (run / "log" / "out.log").write_text("x" * 100)
    words = [sys.executable, "-m", "launcher", "runs", "--runs", str(tmp_path / "runs"), "--json"]
    with Path("/dev/full").open("w") as full:
        own = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}  # which would hide the last flush
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60, check=False, env=own)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
