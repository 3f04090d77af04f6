"""Exports of heads of several layers, of attention and of several heads: each runs without graft and gives the same answers."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from tests.unit.folders import bare
from tests.unit.test_models_libraries import timm_folder, unet_folder, vit_folder
from trainer.config import load
from trainer.export import export, fold
from trainer.models import build_model
from trainer.models.base import Built
from trainer.rundir import RunDir
from trainer.spec import Output

ONE = (Output("", ("dog", "yak", "ant")),)
TWO = (Output("species", ("dog", "yak", "ant")), Output("hair", ("red", "blue")))
MLP = {"layers": {"kind": "mlp", "width": 6, "norm": True, "dropout": 0.2}}
ATTENTION = {"layers": {"kind": "attention", "dropout": 0.2}}
MIXED = {"heads": {"species": ATTENTION, "hair": MLP}}

LOGITS = """
import importlib.util, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

for root in map(Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location(f"predict_{root.name}", root / "export" / "predict.py")
    predict = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = predict
    spec.loader.exec_module(predict)
    with torch.inference_mode():
        save_file({"logits": predict.load()(load_file(root / "images")["images"])}, root / "logits")
assert "trainer" not in sys.modules and "launcher" not in sys.modules
"""


@pytest.fixture(autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


def exported(root: Path, source: str, outputs: tuple[Output, ...], weights: str = "none", **adapt: Any) -> tuple[Path, Built]:
    """A graft whose parameters all moved, written out."""
    bare(root)
    changes = [
        f"model.source={source}",
        f"model.weights={weights}",
        *(f"model.adapt.{k}={json.dumps(v)}" for k, v in adapt.items()),
    ]
    run = load(root / "tiny.yaml", changes)
    one = build_model(run.model, "auto", outputs, 0)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in one.network.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if name.startswith(one.head) else 0.01 * torch.randn_like(parameter))
    facts: dict[str, Any] = {"summary": {}, "evaluation": {}, "outputs": outputs, "run": run}
    network = copy.deepcopy(one.network).eval()
    out = export(RunDir(root / "runs" / "tiny"), root / "export", network=network, spec=one.spec, **facts)
    return out, one


OWN = """
from torch import nn

def make():
    trunk = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*trunk, nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 9))
"""
CASES: dict[str, tuple[str, int | None, tuple[Output, ...], dict[str, Any]]] = {
    "mobilenet": ("torchvision:mobilenet_v3_small", 64, ONE, ATTENTION),
    "squeezenet": ("torchvision:squeezenet1_1", 64, TWO, MIXED),
    "shufflenet": ("torchvision:shufflenet_v2_x0_5", 64, TWO, {}),
    "own": ("python:FOLDER/own.py:make", 16, ONE, ATTENTION),
    "timm_vit": ("timm:test_vit2", 64, TWO, MIXED),
    "vit": ("transformers:FOLDER/vit", 48, TWO, MIXED),
    "unet": ("diffusers:FOLDER/unet", None, TWO, MIXED),
}
FORMLESS = {"timm_vit", "vit"}  # no words for the head


def test_every_export_gives_the_networks_logits_without_graft_and_without_its_source(tmp_path: Path) -> None:
    given = tmp_path / "given"
    vit_folder(given / "vit")
    unet_folder(given / "unet")
    (given / "own.py").write_text(OWN)
    expected: dict[str, torch.Tensor] = {}
    for name, (source, size, outputs, adapt) in CASES.items():
        (tmp_path / name).mkdir()
        weights = "DEFAULT" if source.startswith(("transformers", "diffusers")) else "none"
        changes = {**adapt, **({"image_size": size} if size else {})}
        out, one = exported(tmp_path / name, source.replace("FOLDER", str(given)), outputs, weights, **changes)
        spec = one.spec
        images = torch.randn(3, spec.in_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0))
        save_file({"images": images}, tmp_path / name / "images")
        with torch.inference_mode():
            expected[name] = one.network.eval()(images)
        card, code = ((out / file).read_text() for file in ("README.md", "predict.py"))
        assert ("has no format for the head" in card) == (name in FORMLESS), name
        assert "type: ignore" not in code
        assert ("Skipped()" in code) == (name in ("mobilenet", "own")), name
        written = {path.name for path in out.iterdir()}
        assert written >= {"README.md", "predict.py", "config.json"}
        assert ("graft.json" in written) == (name == "unet"), "in the library's own format"
    shutil.rmtree(given)
    (tmp_path / "logits.py").write_text(LOGITS)
    command = [sys.executable, "-I", str(tmp_path / "logits.py"), *(str(tmp_path / name) for name in CASES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    for name in CASES:
        torch.testing.assert_close(load_file(tmp_path / name / "logits")["logits"], expected[name], atol=1e-5, rtol=1e-5)


def test_linear_heads_side_by_side_are_one_layer_to_a_library(tmp_path: Path) -> None:
    vit_folder(tmp_path / "saved")
    out, one = exported(tmp_path, f"transformers:{tmp_path}/saved", TWO, "DEFAULT")
    library = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(library(x).logits, one.network.eval()(x))
    assert list(library.config.id2label.values())[2:4] == ["species/ant", "hair/red"]
    assert (
        "format of transformers" in (out / "README.md").read_text() or "transformers' format" in (out / "README.md").read_text()
    )


def test_linear_heads_of_timm_too(tmp_path: Path) -> None:
    timm_folder(tmp_path / "saved")
    out, one = exported(tmp_path, f"timm:{tmp_path}/saved", TWO, "DEFAULT")
    library = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(library(x), one.network.eval()(x))
    assert isinstance(library.get_submodule(one.head[0]), nn.Linear)


def test_a_generator_goes_back_to_diffusers_whatever_its_head(tmp_path: Path) -> None:
    unet_folder(tmp_path / "saved")
    out, one = exported(tmp_path, f"diffusers:{tmp_path}/saved", TWO, "DEFAULT", **MIXED)
    kept = diffusers.UNet2DModel.from_pretrained(out).state_dict()
    torch.testing.assert_close(kept["conv_in.weight"], one.network.state_dict()["conv_in.weight"], rtol=0, atol=0)
    assert "in the format of diffusers" in (out / "README.md").read_text()


def test_the_units_of_the_data_go_into_each_of_several_heads(tmp_path: Path) -> None:
    bare(tmp_path)
    changes = ["model.source=torchvision:shufflenet_v2_x0_5", "model.weights=none", "model.adapt.image_size=64"]
    run = load(tmp_path / "tiny.yaml", [*changes, f"model.adapt.heads={json.dumps(MIXED['heads'])}"])
    one = build_model(run.model, "auto", TWO, 0)
    network, images = one.network.eval(), torch.randn(2, 3, 64, 64)
    scale = torch.tensor([[2.0, 1.0, 3.0, 5.0, 0.5], [0.1, 0.0, -1.0, 7.0, 2.0]], dtype=torch.float64)
    with torch.no_grad():
        before = network(images).double()
    fold(network, one.head, scale, one.spec)
    with torch.no_grad():
        torch.testing.assert_close(network(images).double(), before * scale[0] + scale[1], atol=1e-4, rtol=1e-4)
