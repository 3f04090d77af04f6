"""`graft models`, the settings of saved models in a run file, and a sample of the sweep over architectures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from benchmarks.architectures import Verdict, look, names, report
from tests.unit.folders import bare
from trainer.catalog import show
from trainer.config import UserError, load

ROOT = Path(__file__).resolve().parents[2]


def listed(
    capsys: pytest.CaptureFixture[str], pattern: str | None, source: str | None = None, runs: Path = Path("runs")
) -> object:
    assert show(pattern, source, runs, as_json=True) == 0
    return json.loads(capsys.readouterr().out)


def test_a_pattern_lists_and_a_name_describes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    both = listed(capsys, "resnet18")
    assert isinstance(both, list)
    assert {entry["name"] for entry in both} == {"torchvision:resnet18", "timm:resnet18"}
    one = listed(capsys, "timm:resnet18")
    assert isinstance(one, dict)
    assert one["parameters"] == sum(p.numel() for p in timm.create_model("resnet18").parameters())
    assert (one["head"], one["inputs"], one["width"], one["classes"], one["size"]) == (["fc"], ["conv1"], 512, 1000, 224)
    assert "a1_in1k" in one["weights"]
    assert [b["name"] for b in one["blocks"]][:4] == ["conv1", "bn1", "layer1.0", "layer1.1"]
    assert sum(b["parameters"] for b in one["blocks"]) == one["parameters"]
    with pytest.raises(UserError, match=r"no model matches 'resnet1888'; did you mean"):
        show("resnet1888", None, tmp_path, as_json=True)
    bare(tmp_path)
    runs = listed(capsys, None, "run", tmp_path / "runs")
    assert runs == [{"name": "run:tiny", "parameters": None, "size": None, "classes": None, "weights": []}]


def test_the_command_runs_from_the_launcher(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launcher", "models", "torchvision:squeezenet1_1"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert "head           classifier.1, of 512 features" in done.stdout


@pytest.mark.parametrize(
    ("source", "weights", "wanted", "taken"),
    [
        ("timm:resnet18", None, "timm:resnet18", "none"),
        ("timm:saved/net", None, "timm:{here}/saved/net", "DEFAULT"),
        ("transformers:saved/net", None, "transformers:{here}/saved/net", "DEFAULT"),
        ("transformers:owner/name", None, "transformers:owner/name", "DEFAULT"),
        ("diffusers:saved/net#unet", None, "diffusers:{here}/saved/net#unet", "DEFAULT"),
        ("run:first", None, "run:{here}/runs/first", "best"),
        ("run:first", "last", "run:{here}/runs/first", "last"),
    ],
)
def test_saved_models_are_found_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, weights: str | None, wanted: str, taken: str
) -> None:
    (tmp_path / "saved" / "net").mkdir(parents=True)
    bare(tmp_path, "first")
    monkeypatch.chdir(tmp_path)
    model = {"source": source} | ({"weights": weights} if weights else {})
    file = tmp_path / "other.yaml"
    file.write_text(json.dumps({"name": "x", "model": model, "strategy": {"kind": "full"}, "data": {"train": "digits"},
                                "optimizer": {"kind": "adam", "lr": 0.001}}))  # fmt: skip
    run = load(file)
    assert run.model.source == wanted.format(here=tmp_path)
    assert run.model.weights == taken


@pytest.mark.parametrize(
    "name",
    ["timm:test_convnext", "timm:test_efficientnet", "timm:repvgg_a0", "timm:nf_resnet26", "timm:levit_128s", "timm:tresnet_m",
     "timm:efficientvim_m1", "torchvision:googlenet", "torchvision:regnet_y_400mf", "torchvision:swin_t"],
)  # fmt: skip
def test_architectures_take_other_classes_and_channels(name: str) -> None:
    assert look(name) == Verdict(name, "right")


def test_what_the_sweep_cannot_adapt_is_refused_and_told() -> None:
    verdict = look("timm:csatv2")
    assert verdict.state == "refused"
    assert "takes 3 channels" in verdict.reason
    page = report([verdict, Verdict("timm:x", "right")], 60.0, "it")
    assert "1 of 2 architectures (50.00%) are right" in page
    assert f"| timm:csatv2 | {verdict.reason} |" in page
    assert len(names("*")) > 1400
