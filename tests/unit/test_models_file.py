"""Checkpoint files: what is read, what is refused, how their tensors are fitted into a network."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models import Built, build_model
from trainer.models.file import read_checkpoint
from trainer.spec import Output

NETWORK = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x))).mean((2, 3))
        return self.out(torch.relu(self.mix(x)))


def small(classes=3, channels=3):
    return Small(classes, channels)
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NETWORK)
    return f"python:{tmp_path}/net.py:small"


def build(net: str, weights: Path | str, classes: tuple[str, ...] = ("a", "b", "c"), **adapt: Any) -> Built:
    args = adapt.pop("args", {})
    config = Model(source=net, weights=str(weights), args=args, adapt=Adapt(**{"image_size": 8, **adapt}))
    return build_model(config, "auto", (Output("", classes),), 0)


def state(net: str, **args: int) -> dict[str, torch.Tensor]:
    tensors = build(net, "none", tuple("abcdefgh"[: args.get("classes", 3)]), args=args, in_channels=args.get("channels", 3))
    generator = torch.Generator().manual_seed(5)
    return {
        n: torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
        for n, t in tensors.network.state_dict().items()
    }


def equal(built: Built, given: dict[str, torch.Tensor], *but: str) -> bool:
    return all(torch.equal(t, given[n]) for n, t in built.network.state_dict().items() if n not in but)


# --- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_unwrapped(tmp_path: Path, net: str, suffix: str, zipped: bool) -> None:
    given = state(net)
    shapes: list[Any] = [
        given,
        {"state_dict": given, "epoch": 3, "best": 0.9},
        {"model": {"module." + n: t for n, t in given.items()}},
        {"model_state_dict": {"_orig_mod." + n: t for n, t in given.items()}, "optimizer": {"lr": 1.0}},
        {"state_dict": {"module._orig_mod." + n: t for n, t in given.items()}},
    ]
    for number, content in enumerate(shapes):
        path = tmp_path / f"{number}{suffix}"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        built = build(net, path)
        assert equal(built, given)
        assert (built.report.fresh, built.report.adapted, built.report.left_over, built.fresh) == ([], [], [], ())
        assert len(built.report.matched) == len(given)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['EVIL']}",)


def malicious(shape: str, path: Path) -> None:
    content: Any = {"state_dict": {"w": torch.zeros(2)}, "extra": Evil()}
    if shape in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=shape == "zip")
    elif shape in ("pickle 2", "pickle 4"):
        path.write_bytes(pickle.dumps(Evil(), protocol=int(shape[-1])))
    else:
        with tarfile.open(path, "w") as tar:
            for member in ("storages", "tensors", "pickle"):
                data = pickle.dumps(Evil())
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("shape", ["zip", "legacy", "pickle 2", "pickle 4", "tar"])
def test_x1_a_malicious_pickle_runs_nothing(tmp_path: Path, net: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = tmp_path / "touched"
    monkeypatch.setenv("EVIL", str(touched))
    path = tmp_path / "evil.pt"
    malicious(shape, path)
    with pytest.raises(UserError, match=r"nothing in it was run") as caught:
        build(net, path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)
    named = {"pickle 4": "Unsupported operand", "tar": "legacy .tar format"}
    assert named.get(shape, "it asks for posix.system") in str(caught.value)
    assert not touched.exists()
    pickle.loads(pickle.dumps(Evil()))  # the trap itself works
    assert touched.exists()


def test_damaged_missing_and_other_files_are_named(tmp_path: Path, net: str) -> None:
    given = state(net)
    torch.save(given, tmp_path / "good.pt")
    save_file(given, tmp_path / "good.safetensors")
    cases: dict[str, tuple[bytes, str]] = {
        "cut.pt": ((tmp_path / "good.pt").read_bytes()[:900], "cut.pt: damaged or not a file of tensors"),
        "cut.safetensors": ((tmp_path / "good.safetensors").read_bytes()[:-40], "cut.safetensors: damaged"),
        "noise.pth": (bytes(range(256)) * 8, "noise.pth: damaged"),
        "page.safetensors": (b"<html>not found</html>", "page.safetensors: damaged"),
        "empty.pt": (b"", "empty.pt: damaged"),
        "name.onnx": (b"x", "weights are read from"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            build(net, tmp_path / name)
    with pytest.raises(UserError, match=r"god.pt: no such weights file; did you mean 'good.pt'"):
        build(net, tmp_path / "god.pt")
    others: dict[str, tuple[Any, str]] = {
        "list.pt": ([given["out.bias"]], "holds a list, not tensors by name"),
        "mixed.pt": ({**given, "epoch": 3}, r"also holds epoch \(int\)"),
        "nothing.pt": ({}, "holds no tensors"),
        "sparse.pt": ({"w": torch.eye(3).to_sparse()}, "sparse or quantized"),
    }
    for name, (value, message) in others.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(UserError, match=message):
            build(net, tmp_path / name)
    scripted = io.BytesIO()
    torch.save(nn.Linear(2, 2), scripted)
    (tmp_path / "module.pt").write_bytes(scripted.getvalue())
    with pytest.raises(UserError, match=r"asks for torch.nn.modules.linear.Linear"):
        build(net, tmp_path / "module.pt")


def test_exports_carry_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "export.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={"classes": json.dumps(["ü", "b"]), "graft": "0.1.0"})
    assert read_checkpoint(path).classes == ("ü", "b")
    save_file({"w": torch.ones(2)}, path, metadata={"classes": "a, b"})
    with pytest.raises(UserError, match="not a JSON list"):
        read_checkpoint(path)


# --- fitting -----------------------------------------------------------------------------------------------------------


def export(net: str, path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    given = state(net, classes=len(names))
    save_file(given, path, metadata={"classes": json.dumps(names)})
    return given


def test_the_head_follows_the_class_names(tmp_path: Path, net: str) -> None:
    path = tmp_path / "export.safetensors"
    given = export(net, path, ["c", "a", "b"])

    same = build(net, path, ("c", "a", "b"))
    assert equal(same, given)
    assert same.report.adapted == []

    turned = build(net, path, ("a", "b", "c"))
    assert torch.equal(turned.network.get_parameter("out.weight"), given["out.weight"][[1, 2, 0]])
    assert torch.equal(turned.network.get_parameter("out.bias"), given["out.bias"][[1, 2, 0]])
    assert turned.report.adapted[0] == "out.weight: classes put into the order of the task"
    assert turned.fresh == ()

    other = build(net, path, ("x", "y", "z"))
    assert other.fresh == ("out.weight", "out.bias")
    assert not torch.equal(other.network.get_parameter("out.weight"), given["out.weight"])
    assert equal(other, given, "out.weight", "out.bias")

    kept = build(net, path, ("x", "y", "z"), head="keep")
    assert equal(kept, given)

    new = build(net, path, ("c", "a", "b"), head="new")
    assert new.fresh == ("out.weight", "out.bias")

    some = build(net, path, ("b", "x", "c", "y"))
    weight = some.network.get_parameter("out.weight")
    assert torch.equal(weight[[0, 2]], given["out.weight"][[2, 0]])
    assert weight.shape == (4, 4)
    assert not torch.equal(weight[1], weight[3])
    assert some.report.adapted == ["out.weight: 2 of 4 classes kept", "out.bias: 2 of 4 classes kept"]

    with pytest.raises(UserError, match=r"'out' of python:.* has 3 outputs and the task has 4"):
        build(net, path, ("b", "x", "c", "y"), head="keep")
    with pytest.raises(UserError, match="has 3 classes and the task has 4"):
        build(net, path, ("b", "x", "c", "y"), head="keep", args={"classes": 4})


def test_a_file_without_names_keeps_its_head_when_the_number_agrees(tmp_path: Path, net: str) -> None:
    given = state(net)
    torch.save(given, tmp_path / "w.pt")
    assert build(net, tmp_path / "w.pt", ("x", "y", "z")).fresh == ()
    assert build(net, tmp_path / "w.pt", ("x", "y")).fresh == ("out.weight", "out.bias")
    trunk = {n: t for n, t in given.items() if not n.startswith("out.")}
    torch.save(trunk, tmp_path / "trunk.pt")
    assert build(net, tmp_path / "trunk.pt").fresh == ("out.weight", "out.bias")
    with pytest.raises(UserError, match=r"keep, but .* holds no head"):
        build(net, tmp_path / "trunk.pt", head="keep")


def test_the_first_layer_is_fitted_to_other_channels(tmp_path: Path, net: str) -> None:
    given = state(net)
    torch.save(given, tmp_path / "w.pt")
    for channels, args in ((1, {}), (1, {"channels": 1}), (5, {})):
        built = build(net, tmp_path / "w.pt", in_channels=channels, args=args)
        stem = built.network.get_parameter("stem.weight")
        expected = given["stem.weight"].sum(1, keepdim=True) if channels == 1 else given["stem.weight"][:, [0, 1, 2, 0, 1]] * 0.6
        torch.testing.assert_close(stem, expected)
        assert equal(built, given, "stem.weight")
        assert built.fresh == ()
        assert built.spec.in_channels == channels
        assert built.spec.mean == (0.5,) * channels


def test_another_network_s_checkpoint_is_refused_and_nothing_is_changed(tmp_path: Path, net: str) -> None:
    given = state(net)
    torch.save({**given, "mix.weight": torch.zeros(7, 4)}, tmp_path / "shape.pt")
    with pytest.raises(UserError, match=r"another shape: mix.weight \[7, 4\] in the file, \[4, 4\] in the network"):
        build(net, tmp_path / "shape.pt")
    torch.save({"backbone." + n: t for n, t in given.items()}, tmp_path / "names.pt")
    with pytest.raises(UserError, match=r"0 of the network's 8 tensors .*network has .*mix.bias.*file has backbone.stem"):
        build(net, tmp_path / "names.pt")


def test_the_report_tells_what_became_of_each_tensor(tmp_path: Path, net: str) -> None:
    given = state(net)
    del given["norm.num_batches_tracked"], given["mix.bias"]
    given |= {f"ema.{i}": torch.zeros(1) for i in range(6)}
    torch.save(given, tmp_path / "w.pt")
    built = build(net, tmp_path / "w.pt", ("x", "y"), in_channels=1)
    assert built.fresh == ("mix.bias", "out.weight", "out.bias")
    lines = built.report.lines()
    assert lines[0] == f"{tmp_path}/w.pt: 6 tensors matched, 1 adapted, 3 new, 6 left over"
    assert lines[1:] == [
        "  adapted   stem.weight: 3 input channels summed into 1",
        "  new       mix.bias, out.weight, out.bias",
        "  left over ema.0, ema.1, ema.2, ema.3 and 2 more",
    ]
