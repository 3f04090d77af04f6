"""Cluster files: which is taken, what is refused, and what a run asks of a site."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from launcher.cluster import Cluster, known, load_cluster, read
from launcher.machine import Machine
from launcher.plan import Counts, plan
from launcher.request import container, job_of, merged, node_of
from launcher.script import Job, template
from launcher.snapshot import Code
from trainer.config import Run, UserError, schema
from trainer.config.targets import Facts
from trainer.config.yamlfile import parse

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "configs" / "clusters" / "examples").glob("*.yaml"))
COUNTS = Counts(100, 30, Facts.plain(("a", "b"), (60, 40)))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder for cluster files, and an empty one of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    (tmp_path / "configs" / "clusters").mkdir(parents=True)
    return tmp_path / "configs" / "clusters"


def run(**sections: Any) -> Run:
    return Run.model_validate(
        {
            "name": "x",
            "model": {"source": "torchvision:resnet18"},
            "strategy": {"kind": "head"},
            "data": {"train": "folder:t", "val": "folder:v"},
            "optimizer": {"kind": "sgd", "lr": 0.1},
            **sections,
        }
    )


def asks(cluster: Cluster, **sections: Any) -> Job:
    asked = merged(run(**sections), cluster)
    planned = plan(asked, COUNTS, node_of(asked, cluster))
    here = Path.cwd()
    return job_of(asked, cluster, planned, Code(here, None, here / "code"), name="x", logs=here, folder=here)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_the_examples_are_valid_and_complete(file: Path) -> None:
    cluster = read(file)
    Draft202012Validator(schema(Cluster)).validate(parse(file.read_text(), str(file)).value)
    assert cluster.time is not None
    assert file.read_text().startswith("#"), "a header says what it is for"


def test_a_checkout_has_no_default_that_surprises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert known() == {}
    assert load_cluster(None) == Cluster()
    assert len(EXAMPLES) >= 4


def test_the_file_that_is_taken(project: Path, tmp_path: Path) -> None:
    (project / "a.yaml").write_text("account: one\n")
    assert load_cluster(None).account == "one", "the only one"
    own = tmp_path / "own" / "graft" / "clusters"
    own.mkdir(parents=True)
    (own / "a.yaml").write_text("account: hidden\n")
    (own / "b.yaml").write_text("account: two\n")
    assert (load_cluster("a").account, load_cluster("b").account) == ("one", "two"), "the project's before the user's"
    with pytest.raises(UserError, match=r"there are a, b; name one, or call one default\.yaml"):
        load_cluster(None)
    (own / "default.yaml").write_text("account: three\n")
    assert load_cluster(None).account == "three"
    with pytest.raises(UserError, match=r"'aa' and there is no aa\.yaml in configs/clusters or .*did you mean 'a'"):
        load_cluster("aa")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partion: gpu", ["1", "unknown key 'partion'", "did you mean 'partition'"]),
        ("partition: 'a b'", ["letters, digits"]),
        ("partition: \"a\\n#SBATCH --uid=0\"", ["letters, digits"]),
        ("account: $(id)", ["letters, digits"]),
        ("gpus_per_node: eight", ["whole number"]),
        ("time: 4h", ["hours:minutes:seconds"]),
        ("warning: soon", ["write a number and a unit"]),
        ("environment: {WANDB_API_KEY: abc}", ["looks like a secret", "~/.netrc"]),
        ("environment: {'A B': c}", ["no name of a variable"]),
        ("environment: {A: \"b\\nc\"}", ["no line breaks"]),
        ("options: [-p gpu]", ["write --name or --name=value"]),
        ("options: ['--comment=$(id)']", ["write --name or --name=value"]),
        ("options: [--export=ALL]", ["graft sets this itself"]),
        ("options: [--test-only]", ["graft sets this itself"]),
        ("modules: ['cuda; id']", ["modules"]),
        ("scratch: /local/$USER", ["variables are not replaced", "site file"]),
        ("container: {kind: docker, image: x}", ["'apptainer'", "pyxis"]),
        ("container: {kind: pyxis, image: --uid=0}", ["does not begin with a dash"]),
        ("[]", ["mapping"]),
    ],
)  # fmt: skip
def test_mistakes_are_refused_with_what_to_write(project: Path, text: str, words: list[str]) -> None:
    (project / "a.yaml").write_text(text + "\n")
    with pytest.raises(UserError) as error:
        load_cluster("a")
    assert "a.yaml" in str(error.value)
    for word in words:
        assert word.replace("'", "") in str(error.value).replace("'", "")


def test_the_run_goes_before_the_cluster(project: Path) -> None:
    site = Cluster(gpus_per_node=8, gpu_type="h100", time="4:00:00", partition="gpu", account="vision", cpus_per_gpu=12)
    job = asks(site)
    assert (job.nodes, job.gpus, job.gpu_type, job.cpus) == (1, 8, "h100", 96)
    assert (job.time, job.partition, job.account) == ("4:00:00", "gpu", "vision")
    own = asks(site, resources={"nodes": 2, "gpus_per_node": 4, "time": "0:10:00", "partition": "short", "account": "me"})
    assert (own.nodes, own.gpus, own.cpus, own.time, own.partition, own.account) == (2, 4, 48, "0:10:00", "short", "me")


def test_ranks_get_cores_and_a_cpu_run_asks_for_no_gpu(project: Path) -> None:
    cpu = asks(Cluster(gpus_per_node=8), parallel={"device": "cpu", "processes": 3, "threads": 2})
    assert (cpu.gpus, cpu.cpus) == (0, 6)
    assert asks(Cluster(), parallel={"processes": 2}).cpus == 2
    assert asks(Cluster(gpus_per_node=8)).cpus is None, "the site's own default for a GPU"
    fewer = asks(Cluster(gpus_per_node=8, cpus_per_gpu=4), parallel={"processes": 2})
    assert (fewer.gpus, fewer.cpus) == (2, 8), "no more GPUs than ranks"


@pytest.mark.parametrize(
    ("cluster", "sections", "words"),
    [
        ({}, {"parallel": {"device": "cuda"}}, ["resources.gpus_per_node=8"]),
        ({"gpus_per_node": 2}, {"parallel": {"processes": 3}}, ["2 GPUs", "resources.gpus_per_node=3", "parallel.device=cpu"]),
        ({"gpus_per_node": 8}, {"train": {"global_batch": 9}, "resources": {"nodes": 2}}, ["9 / 16", "train.global_batch=16"]),
        ({}, {"train": {"precision": "fp16"}}, ["fp16", "bf16"]),
    ],
)
def test_what_no_node_can_give_is_refused(
    project: Path, cluster: dict[str, Any], sections: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        asks(Cluster(**cluster), **sections)
    assert all(word in str(error.value) for word in words)


def test_nodes_are_those_of_the_cluster() -> None:
    site = Cluster(gpus_per_node=8, cpus_per_gpu=12)
    assert node_of(merged(run(), site), site) == Machine(8, 96)
    assert node_of(run(parallel={"processes": 3}), Cluster()) == Machine(0, 3)


def test_containers() -> None:
    def words(kind: str, gpus: int = 8) -> tuple[tuple[str, ...], tuple[str, ...]]:
        site = Cluster.model_validate(
            {"container": {"kind": kind, "image": "/i.sif", "mounts": ["/a", "/b:/c"]}, "environment": {"MINE": "1"}}
        )
        return container(site, Path("/code"), gpus=gpus)

    binds = ("--bind", "/a", "--bind", "/b:/c", "--pwd", "/code", "/i.sif")
    assert words("apptainer") == (("apptainer", "exec", "--nv", *binds), ())
    assert words("apptainer", gpus=0) == (("apptainer", "exec", *binds), ())
    assert words("pyxis") == (
        (), ("--container-image=/i.sif", "--container-workdir=/code", "--container-mounts=/a:/a,/b:/c"),
    )  # fmt: skip
    enroot, steps = words("enroot")
    assert enroot[:6] == ("enroot", "start", "--mount", "/a:/a", "--mount", "/b:/c")
    assert enroot[-2:] == ("--", "/i.sif")
    assert {"SLURM_NODEID", "PYTHONPATH", "MINE"} <= {*enroot}, "enroot passes no variable on that it is not told of"
    assert steps == ()


def test_enroot_is_told_of_every_variable_of_the_job_script() -> None:
    ours = re.compile(r"\b(?:NCCL|GLOO|HF|TRANSFORMERS|WANDB|PYTHON|GRAFT)[A-Z_]*")
    lines = [line for line in template("train.sbatch").splitlines() if "export" in line and not line.startswith("#")]
    exported = {name for line in lines for name in ours.findall(line.partition("export")[2])}
    exported -= {"GRAFT_CODE", "GRAFT_INTERFACE", "GRAFT_SCRATCH"}  # their values
    words, _ = container(Cluster.model_validate({"container": {"kind": "enroot", "image": "i"}}), Path("/"), gpus=1)
    read = re.compile(r"environ(?:\.get\(|\[)\"((?:SLURM|GRAFT)[A-Z_]*)\"")
    files = [
        *(ROOT / "launcher" / f"{name}.py" for name in ("job", "node", "agent", "nodecheck")),
        ROOT / "trainer/rundir/place.py",
    ]
    texts = [file.read_text() for file in files]
    asked = {name for text in texts for name in read.findall(text)}
    assert exported
    assert {"SLURM_GPUS_ON_NODE", "GRAFT_NODES", "SLURM_RESTART_COUNT"} <= asked
    assert exported | asked <= {*words}


def test_the_interpreter_and_the_site_file(project: Path, tmp_path: Path) -> None:
    assert asks(Cluster()).python == sys.executable
    assert asks(Cluster.model_validate({"container": {"kind": "pyxis", "image": "i"}})).python == "python3"
    assert asks(Cluster(python="~/venv/bin/python")).python == str(Path("~/venv/bin/python").expanduser())
    with pytest.raises(UserError, match=r"site is site\.sh, and there is no file .*/site\.sh"):
        asks(Cluster(site="site.sh"))
    (tmp_path / "site.sh").write_text("")
    assert asks(Cluster(site="site.sh")).site == str(tmp_path / "site.sh")


def test_the_schema_of_a_cluster_file_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "schema", "--cluster"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(done.stdout) == schema(Cluster)
