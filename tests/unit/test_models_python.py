"""Networks of the user's own, by module or file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models import Built, build_model
from trainer.spec import Output

FIVE = ("ant", "bee", "cat", "dog", "eel")
HEADER = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"


def build(source: str, classes: tuple[str, ...] = FIVE, *, load: bool = True, **adapt: Any) -> Built:
    args = adapt.pop("args", {})
    weights = adapt.pop("weights", "none")
    config = Model(source=source, weights=weights, args=args, adapt=Adapt(**{"image_size": 16, **adapt}))
    return build_model(config, "auto", (Output("", classes),), 0, load_weights=load)


def write(folder: Path, body: str, name: str = "net.py") -> str:
    (folder / name).write_text(HEADER + body)
    return f"python:{folder}/{name}:make"


PLAIN = """
def make(classes=3, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


def test_a_file_s_network_is_fitted_to_classes_and_channels(tmp_path: Path) -> None:
    source = write(tmp_path, PLAIN)
    built = build(source, in_channels=2)
    assert built.network(torch.zeros(2, 2, 16, 16)).shape == (2, 5)
    assert built.head == ("4",)
    assert built.fresh == ("4.weight", "4.bias")
    kept = build(source, FIVE[:3], args={"channels": 2}, in_channels=2)
    assert kept.fresh == ()
    again = build(source, FIVE[:3], args={"channels": 2}, in_channels=2)
    assert all(torch.equal(a, b) for a, b in zip(kept.network.parameters(), again.network.parameters(), strict=True))
    assert build(source, FIVE[:3], head="new").fresh == ("4.weight", "4.bias")
    with pytest.raises(UserError, match=r"'4' of python:.* has 3 outputs and the task has 5"):
        build(source, head="keep")


def test_a_build_without_reading_needs_no_file(tmp_path: Path) -> None:
    source = write(tmp_path, PLAIN)
    torch.save(build(source, FIVE[:3]).network.state_dict(), tmp_path / "w.pt")
    loaded = build(source, weights=str(tmp_path / "w.pt"))
    (tmp_path / "w.pt").unlink()
    shaped = build(source, weights=str(tmp_path / "w.pt"), load=False)
    assert {n: t.shape for n, t in loaded.network.state_dict().items()} == {
        n: t.shape for n, t in shaped.network.state_dict().items()
    }
    assert (loaded.fresh, loaded.head, loaded.spec) == (shaped.fresh, shaped.head, shaped.spec)


def test_heads_are_found_where_they_are_not_last_and_beside_auxiliary_ones(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(8, 8)
        self.side = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.trunk = nn.Conv2d(3, 8, 3)
        self.scale = torch.ones(8)  # no buffer: the pass for shapes alone fails and the real one is taken

    def forward(self, x):
        x = self.trunk(x).mean((2, 3)) * self.scale
        out = self.classify(x)
        return (out, self.side(x)) if self.training else out

def make():
    return Net()
""",
    )
    built = build(source)
    assert built.head == ("classify", "side.1")
    outputs = built.network(torch.zeros(2, 3, 16, 16))
    assert [o.shape for o in outputs] == [(2, 5), (2, 5)]


def test_a_convolutional_head_and_one_behind_a_softmax(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        """
class Net(nn.Module):
    num_classes = 3
    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3)
        self.last = nn.Conv2d(8, 3, 1, bias=False)
        self.num_classes = 3
    def forward(self, x):
        return F.log_softmax(self.last(self.trunk(x)).mean((2, 3)).view(-1, self.num_classes), 1)

def make():
    return Net()
""",
    )
    built = build(source)
    assert built.head == ("last",)
    assert built.fresh == ("last.weight",)
    assert built.network(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


def test_examining_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        """
def make():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(588), nn.Linear(588, 5))
    net[1].eval()
    return net
""",
    )
    built = build(source)
    assert [m.training for m in built.network] == [True, False, True, True, True]  # type: ignore[attr-defined]
    norm = built.network.get_submodule("1")
    assert torch.equal(norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]
    assert int(norm.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert "forward" not in vars(norm)
    assert not any(m._forward_hooks for m in built.network.modules())


def test_a_package_s_factory_and_a_file_beside_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "someones_nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    write(package, PLAIN, "small.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build("python:someones_nets.small:make").head == ("4",)
    (tmp_path / "graft_test_sibling.py").write_text("CLASSES = 5\n")
    source = write(
        tmp_path, "from graft_test_sibling import CLASSES\n" + PLAIN.replace("classes=3", "classes=CLASSES"), "other.py"
    )
    before = list(sys.path)
    assert build(source).fresh == ()
    assert sys.path == before
    with pytest.raises(UserError, match=r"no module 'someones_nets.smal'"):
        build("python:someones_nets.smal:make")
    with pytest.raises(UserError, match="no module 'nowhere_at_all'"):
        build("python:nowhere_at_all.net:make")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def mak(): return nn.Linear(2, 2)", r"has no factory 'make'; did you mean 'mak'"),
        ("def make(): return 3", r"returned a int, not a torch.nn.Module"),
        ("def make(): raise RuntimeError('out of luck')", r"failed: RuntimeError: out of luck \(.*net.py:4\)"),
        ("def make(size): return nn.Identity()", r"failed: TypeError: .*'size'"),
        ("import no_such_library", r"running it failed: ModuleNotFoundError: .*no_such_library"),
        ("def make(:", r"running it failed: SyntaxError"),
        ("raise SystemExit(3)", r"running it failed: SystemExit: 3"),
        ("def make(): return nn.Conv2d(3, 5, 3)", r"gives \(2, 5, 14, 14\) for two images; a classifier gives logits"),
        ("def make(): return nn.Sequential(nn.Flatten(), nn.Linear(99, 5))", r"does not take images of 16 x 16 pixels \(.*shape"),
        ("def make(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))", r"lazy layers"),
        (
            "class N(nn.Module):\n  def forward(self, x): return {'logits': x}\ndef make(): return N()",
            "gives dict for two images",
        ),
        ("def make(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())", "no linear or convolutional layer gives its"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_message(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(write(tmp_path, body))


def test_bad_sources(tmp_path: Path) -> None:
    source = write(tmp_path, PLAIN)
    with pytest.raises(UserError, match=r"no such file with a network; did you mean 'net.py'"):
        build(source.replace("net.py", "nets.py"))
    with pytest.raises(UserError, match="image_size is missing"):
        build(source, image_size=None)
    for text in ("python:net.py", "python:a.b:", "python:a:b-c"):
        with pytest.raises(UserError, match=r"write python:package.module:factory"):
            build(text)
    with pytest.raises(UserError, match="did you mean 'torchvision'"):
        build("torchvison:resnet18")
    for text in ("base:x", "build:x"):
        with pytest.raises(UserError, match="known: diffusers, python, run, timm, torchvision, transformers"):
            build(text)
    flat = write(tmp_path, "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(768, 5))", "flat.py")
    assert build(flat).head == ("1",)
    with pytest.raises(UserError, match="takes 3 channels and does not begin with a convolution"):
        build(flat, in_channels=1)
