"""The example runs: they load, and their headers say the truth about what learns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

from trainer import strategies
from trainer.config import load
from trainer.models import build_model
from trainer.spec import Output

FOLDER = Path(__file__).parents[2] / "configs" / "classify"
FILES = sorted(FOLDER.glob("*.yaml"))
OTHERS = sorted(
    file for kind in ("autoencoder", "diffusion", "gan", "translate") for file in (FOLDER.parent / kind).glob("*.yaml")
)


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    register = nn.Module.register_parameter

    def shaped(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta")))

    monkeypatch.setattr(nn.Module, "register_parameter", shaped)


@pytest.mark.parametrize("file", FILES, ids=[f.stem for f in FILES])
def test_an_example_loads_and_learns_what_its_header_says(file: Path, without_values: None) -> None:
    run = load(file)
    assert run.name == file.stem
    text = file.read_text(encoding="utf-8")
    assert f"graft train configs/classify/{file.name}" in text
    counts = []
    for classes in (5, 6):
        names = tuple(str(c) for c in range(classes))
        built = build_model(run.model, run.data.normalize, (Output("", names),), run.train.seed, load_weights=False)
        strategies.apply(run.strategy, built.network, built.head, built.fresh, lambda amount: 0)
        counts.append(strategies.summary(built.network))
        assert built.spec.mean == (0.485, 0.456, 0.406)
    each = counts[1].learning - counts[0].learning
    trunk = counts[0].learning - 5 * each if run.strategy.kind == "full" else counts[0].frozen
    said = re.search(r"([\d,]+)(?: parameters)? a class", text)
    millions = re.search(r"([\d.]+) million", text)
    assert said is not None
    assert millions is not None
    assert int(said[1].replace(",", "")) == each
    assert float(millions[1]) == pytest.approx(trunk / 1e6, abs=0.5 if "." not in millions[1] else 0.05)


def test_the_classic_is_the_textbook() -> None:
    run = load(FOLDER / "vgg16-head.yaml")
    assert (run.optimizer.kind, run.optimizer.lr, run.train.epochs, run.strategy.kind) == ("adam", 1e-3, 10, "head")
    assert (run.model.weights, run.model.adapt.image_size, run.data.normalize) == ("IMAGENET1K_V1", 224, "imagenet")


@pytest.mark.parametrize("file", OTHERS, ids=[f.stem for f in OTHERS])
def test_an_example_that_makes_images_loads_and_says_how_it_is_trained(file: Path) -> None:
    run = load(file)
    assert (run.name, run.task.kind) == (file.stem, file.parent.name)
    assert f"graft train configs/{file.parent.name}/{file.name}" in file.read_text(encoding="utf-8")
