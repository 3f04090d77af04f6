"""An export is used without graft: its program runs alone and gives the network's own answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode, v2

from tests.unit.folders import bare
from trainer.config import Run, UserError, load
from trainer.export import export
from trainer.rundir import RunDir
from trainer.spec import InputSpec, Output

CLASSES = ("five", "six'\"", "<script>", "ñandú")
OWN = """
from torch import nn

def small(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
"""


def settings(root: Path, *overrides: str) -> Run:
    bare(root)
    return load(root / "tiny.yaml", overrides)


def written(root: Path, run: Run, network: nn.Module, spec: InputSpec, **more: Any) -> Path:
    torch.manual_seed(0)
    facts: dict[str, Any] = {"summary": {}, "evaluation": {}, **more}
    folder = RunDir(root / "runs" / "tiny")
    return export(folder, root / "export", network=network.eval(), spec=spec, outputs=(Output("", CLASSES),), run=run, **facts)


def pictures(root: Path) -> list[Path]:
    """A photograph-like RGB, a turned JPEG, one with transparency, a very long one."""
    made = []
    noise = torch.randint(0, 256, (40, 61, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy()).resize((97, 60), Image.Resampling.BILINEAR)
    for name in ("plain.png", "turned.jpg", "glass.png", "long.png"):
        path = root / name
        if name == "turned.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(path, exif=exif)
        elif name == "glass.png":
            glass = image.convert("RGBA")
            glass.putalpha(image.convert("L"))
            glass.save(path)
        else:
            (image if name == "plain.png" else image.resize((900, 12))).save(path)
        made.append(path)
    return made


def expected(path: Path, run: Run, spec: InputSpec) -> torch.Tensor:
    """The evaluation's pre-processing, by other means than the program: whole transforms of torchvision."""
    image: Image.Image = Image.open(path)
    turned = image.getexif().get(0x0112) == 6
    image = image.transpose(Image.Transpose.ROTATE_270) if turned else image
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white.convert("RGB")
    pixels = v2.functional.pil_to_tensor(image.convert("L") if spec.in_channels == 1 else image)
    side = run.data.resize_to or spec.image_size
    if run.data.resize == "crop" and pixels.shape[2] > 8 * pixels.shape[1]:
        start = (pixels.shape[2] - 8 * pixels.shape[1]) // 2
        pixels = pixels[:, :, start : start + 8 * pixels.shape[1]]
    mode = {"bilinear": InterpolationMode.BILINEAR, "nearest": InterpolationMode.NEAREST_EXACT}[
        "bilinear" if run.data.interpolation == "auto" else run.data.interpolation
    ]
    size = [side, side] if run.data.resize == "squash" else [side]
    steps = [v2.Resize(size, mode, antialias=True), v2.CenterCrop(spec.image_size), v2.ToDtype(torch.float32, scale=True)]
    steps.append(v2.Normalize(list(spec.mean), list(spec.std)))
    ready: torch.Tensor = v2.Compose(steps)(pixels)
    return ready.unsqueeze(0)


LOGITS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import predict, torch
network = predict.load()
with torch.inference_mode():
    print(json.dumps([network(predict.read(p))[0].tolist() for p in sys.argv[2:]]))
assert "trainer" not in sys.modules and "launcher" not in sys.modules
"""


def alone(*arguments: str | Path, cwd: Path, code: int = 0) -> tuple[str, str]:
    """Python's output and errors, isolated: no PYTHONPATH, no working directory on the path."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def compare(out: Path, root: Path, run: Run, network: nn.Module, spec: InputSpec) -> None:
    files = pictures(root)
    (root / "logits.py").write_text(LOGITS, encoding="utf-8")
    said = torch.tensor(json.loads(alone(root / "logits.py", out, *files, cwd=root)[0]))
    with torch.inference_mode():
        own = torch.cat([network(expected(path, run, spec)) for path in files])
    torch.testing.assert_close(said, own, atol=1e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


def test_a_torchvision_network_with_grey_input_and_new_head(tmp_path: Path) -> None:
    run = settings(tmp_path, "model.source=torchvision:mobilenet_v3_small", "data.resize_to=72", "data.normalize=half")
    network = models.mobilenet_v3_small(num_classes=4)
    network.features[0][0] = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
    spec = InputSpec(1, 64, (0.5,), (0.5,))
    out = written(tmp_path, run, network, spec)
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "config.json", "model.safetensors", "predict.py"]
    compare(out, tmp_path, run, network, spec)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["classes"] == list(CLASSES)
    assert (config["image_size"], config["mean"]) == (64, [0.5])
    with safe_open(str(out / "model.safetensors"), "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["preprocessing"])["resize_to"] == 72


def test_a_vision_transformer_at_another_resolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table of positions follows from image_size; one of another depth is refused, since the source would not make it."""
    for name in ("trunc_normal_", "xavier_uniform_", "normal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)  # the values do not matter, and take seconds
    run = settings(tmp_path, "model.source=torchvision:vit_b_32")
    spec = InputSpec(3, 64, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    with pytest.raises(UserError, match="export cannot describe"):
        written(tmp_path, run, models.VisionTransformer(64, 32, 1, 12, 768, 3072, num_classes=4), spec)
    assert not (tmp_path / "export").exists()
    network = models.vit_b_32(num_classes=4, image_size=64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
    out = written(tmp_path, run, network, spec)
    assert "image_size=64" in (out / "predict.py").read_text(encoding="utf-8")
    monkeypatch.undo()


def test_the_snippet_of_the_card_names_the_class(tmp_path: Path) -> None:
    """The program is taken from the card; the picture is squashed."""
    run = settings(tmp_path, "model.source=torchvision:shufflenet_v2_x0_5", "data.resize=squash", "data.interpolation=nearest")
    network = models.shufflenet_v2_x0_5(num_classes=4)
    spec = InputSpec(3, 64, (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    out = written(tmp_path, run, network, spec)
    card = (out / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    assert code == (out / "predict.py").read_text(encoding="utf-8")
    path = pictures(tmp_path)[1]
    (out / "snippet.py").write_text(code, encoding="utf-8")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((70, 70), 40_000, np.uint16)).save(deep)
    said, errors = alone("snippet.py", deep, path, "nowhere.png", cwd=out, code=1)
    assert f"{deep}: more than 8 bits a channel; save it in 8 bits" in errors
    assert "nowhere.png: " in errors
    assert "Traceback" not in errors
    file, name, probability = said.strip().split("\t")
    with torch.inference_mode():
        chances = network.eval()(expected(path, run, spec)).softmax(1)[0]
    assert file == str(path)
    assert name == CLASSES[int(chances.argmax())]
    assert float(probability) == pytest.approx(float(chances.max()), abs=1e-5)


def test_a_network_of_ones_own_from_a_file_and_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factory gives ten classes and three channels; the run had four and one."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as for most people
    own = tmp_path / "code" / "my_networks.py"
    own.parent.mkdir()
    own.write_text(OWN, encoding="utf-8")
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4, bias=False))
    spec = InputSpec(1, 16, (0.0,), (1.0,))
    run = settings(tmp_path, f"model.source=python:{own}:small", "model.args={width: 6}", "data.resize_to=20")
    out = written(tmp_path, run, network, spec)
    assert str(own.parent) not in (out / "predict.py").read_text(encoding="utf-8") + (out / "README.md").read_text(
        encoding="utf-8"
    )
    own.rename(own.with_name("gone.py"))
    compare(out, tmp_path, run, network, spec)
    own.with_name("gone.py").rename(own)
    monkeypatch.syspath_prepend(own.parent)
    run = settings(tmp_path, "model.source=python:my_networks:small", "model.args={width: 6}")
    out = written(tmp_path, run, network, spec)
    assert "from my_networks import small" in (out / "predict.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "densenet121", "mnasnet0_5"])
def test_kinds_of_heads(tmp_path: Path, name: str) -> None:
    """A convolution as head, auxiliary heads, another first layer; the export itself compares the logits."""
    run = settings(tmp_path, f"model.source=torchvision:{name}")
    extra = {"init_weights": False} if name == "googlenet" else {}
    network = models.get_model(name, num_classes=4, **extra)
    first = {"squeezenet1_1": "features.0", "googlenet": "conv1.conv", "densenet121": "features.conv0",
             "mnasnet0_5": "layers.0"}[name]  # fmt: skip
    old = network.get_submodule(first)
    parent, _, child = first.rpartition(".")
    bias = old.bias is not None
    setattr(
        network.get_submodule(parent), child, nn.Conv2d(5, old.out_channels, old.kernel_size, old.stride, old.padding, bias=bias)
    )
    out = written(tmp_path, run, network, InputSpec(5, 96, (0.5,) * 5, (0.5,) * 5))
    assert (out / "model.safetensors").is_file()


def test_an_export_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(tmp_path, "model.source=torchvision:squeezenet1_1")
    spec = InputSpec(3, 64, (0.5,) * 3, (0.5,) * 3)
    network = models.squeezenet1_1(num_classes=4)
    out = written(tmp_path, run, network, spec)
    before = (out / "model.safetensors").read_bytes()
    broken = models.squeezenet1_1(num_classes=4)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.export.folder.check", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path, run, broken, spec)
    assert (out / "model.safetensors").read_bytes() == before
    monkeypatch.undo()
    written(tmp_path, run, broken, spec)
    assert (out / "model.safetensors").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".export")] == []
    (tmp_path / "export" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is no export"):
        written(tmp_path, run, network, spec)


def test_what_the_card_says(tmp_path: Path) -> None:
    run = settings(tmp_path, "model.source=torchvision:squeezenet1_1", "model.weights=/secret/place/of/mine.safetensors")
    manifest = {"data": {"train": {"samples": 640, "fingerprint": "ab12" * 16}}, "versions": {"torch": "2.9"}}
    (tmp_path / "runs" / "tiny" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    matrix = [[8, 2, 0, 0], [0, 9, 1, 0], [0, 0, 10, 0], [1, 0, 0, 9]]
    per_class = [{"name": name, "precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 10} for name in CLASSES]
    evaluation = {"step": 70, "classes": list(CLASSES), "confusion": matrix, "per_class": per_class}
    summary = {
        "best": {"metrics": {"val/accuracy": 0.9, "val/loss": 0.31}}, "samples": 4480, "step": 70,
        "parameters": {"learning": 2052, "frozen": 722_496},
    }  # fmt: skip
    network = models.squeezenet1_1(num_classes=4)
    out = written(tmp_path, run, network, InputSpec(3, 64, (0.5,) * 3, (0.5,) * 3), summary=summary, evaluation=evaluation)
    prose, _, rest = (out / "README.md").read_text(encoding="utf-8").partition("```python")
    text = prose + rest.split("```")[1]
    for fact in (
        "| accuracy | 90.00% |",
        "40 validation samples, of which 36",
        "ab12ab12",
        "640",
        "mine.safetensors",
        "2,052 learnt",
    ):
        assert fact in text
    assert "license: unknown" in text
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "/secret/place" not in text
