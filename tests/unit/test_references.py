"""Teachers of other libraries: asked what they would be asked there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.unit.folders import RUN, bare
from tests.unit.test_models_libraries import CLASSES, timm_folder, vit_folder
from trainer.config import UserError, load
from trainer.config.adapt import Adapt
from trainer.config.model import Model
from trainer.config.targets import Facts, Known, Target
from trainer.losses.base import Reference
from trainer.references import block_names, fingerprint, in_units, start, teacher
from trainer.spec import InputSpec, Output

OWN = InputSpec(3, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CPU = torch.device("cpu")


def taught(source: str, classes: tuple[str, ...] = CLASSES, *, answers: bool = True, **adapt: Any) -> Reference:
    config = Model.model_validate({"source": source, "adapt": Adapt(**adapt).model_dump(exclude_defaults=True)})
    return teacher(config, "auto", (Output("", classes),), None, OWN, CPU, nullcontext, answers=answers)


def test_a_transformers_teacher_sees_the_images_at_its_size_with_its_normalisation(tmp_path: Path) -> None:
    library = vit_folder(tmp_path)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def column(*values: float) -> torch.Tensor:
        return torch.tensor(values)[:, None, None]

    ours = (pixels - column(*OWN.mean)) / column(*OWN.std)
    small = functional.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    theirs = (small - column(0.4, 0.5, 0.6)) / column(0.1, 0.2, 0.3)
    with torch.no_grad():
        expected = library(theirs).logits
    found = taught(f"transformers:{tmp_path}").answer(ours)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    shuffled = ("elk", "ant", "dog", "bee", "cat")
    again = taught(f"transformers:{tmp_path}", shuffled).answer(ours)
    torch.testing.assert_close(again, expected[:, [4, 0, 3, 1, 2]], rtol=1e-4, atol=1e-5)
    named = ("ant", "bee", "cat", "hound", "elk")
    renamed = taught(f"transformers:{tmp_path}", named, rename={"hound": "dog"}).answer(ours)
    torch.testing.assert_close(renamed, expected, rtol=1e-4, atol=1e-5)
    fewer = taught(f"transformers:{tmp_path}", ("dog", "ant")).answer(ours)
    torch.testing.assert_close(fewer, expected[:, [3, 0]], rtol=1e-4, atol=1e-5)


def test_a_timm_teacher_and_what_does_not_teach(tmp_path: Path) -> None:
    timm_folder(tmp_path)
    found = taught(f"timm:{tmp_path}")
    assert found.blocks
    assert not any(parameter.requires_grad for parameter in found.network.parameters())
    assert not found.network.training
    with pytest.raises(UserError, match=r"does not answer in all classes of the task \(ant, yak …\): .*rename"):
        taught(f"timm:{tmp_path}", ("ant", "yak"))
    assert taught(f"timm:{tmp_path}", ("ant", "yak"), answers=False).answer(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    with pytest.raises(UserError, match=r"losses\.teacher\.adapt\.in_channels: 3"):
        taught(f"timm:{tmp_path}", in_channels=1)


def test_the_start_stays_where_the_network_was(tmp_path: Path) -> None:
    network = timm_folder(tmp_path)
    before = start(network, ["fc"], CPU, nullcontext)
    digest = fingerprint(before.network)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(images).clone()
        for parameter in network.parameters():
            parameter.add_(0.1)
        assert not torch.allclose(network(images), expected)
        torch.testing.assert_close(before.answer(images), expected)
    assert fingerprint(before.network) == digest != fingerprint(network)
    assert before.blocks == block_names(network, ["fc"])


def a_run(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, *facts: Known) -> None:
    """Every run is one of this task on these targets."""
    root.mkdir(exist_ok=True)
    run = load(bare(root, text=RUN.replace("strategy:", f"task: {{kind: {kind}}}\nstrategy:")).config)

    class Source:
        def __init__(self, rest: str, config: Model) -> None:
            self.run = run
            self.loaded = SimpleNamespace(state={"facts": Facts(facts).as_json()})

    monkeypatch.setattr("trainer.references.run_source.Source", Source)


def test_numbers_of_a_run_are_told_in_the_units_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher learnt (value - mean) / deviation of its own data, the task those of other data."""
    a_run(tmp_path, monkeypatch, "regress", Known(Target("", "values", ("age", "size")), (), (9, 9), (40.0, 2.0), (10.0, 0.5)))
    config = Model.model_validate({"source": "run:other"})
    outputs = (Output("", ("size", "age"), "values"),)
    scale = torch.tensor([[2.0, 5.0], [1.0, 30.0]], dtype=torch.float64)
    units = in_units(config, outputs, scale)
    assert units is not None
    logits = torch.tensor([[1.0, -1.0]])  # size 2 + 0.5, age 40 - 10
    told = logits * units[0] + units[1]
    assert (told * scale[0] + scale[1]).tolist() == [[2.5, 30.0]]
    plain = in_units(Model.model_validate({"source": "timm:test_vit"}), outputs, scale)
    assert plain is not None
    assert (logits * plain[0] + plain[1]).tolist()[0] == pytest.approx([0.0, -6.2]), (
        "numbers of anybody else are those of the data"
    )
    assert in_units(Model.model_validate({"source": "timm:test_vit"}), outputs, None) is None


def test_units_are_those_of_the_rows_that_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that the run gives them: renamed, of another head, of a head without a name, or kept by their places."""

    def found(*outputs: Output, **adapt: Any) -> list[list[float]]:
        config = Model.model_validate({"source": "run:other", "adapt": adapt})
        units = in_units(config, outputs, None)
        assert units is not None
        rows: list[list[float]] = units.t().tolist()
        return rows

    a_run(tmp_path, monkeypatch, "regress", Known(Target("", "values", ("age", "size")), (), (9, 9), (40.0, 2.0), (10.0, 0.5)))
    age, size = [10.0, 40.0], [0.5, 2.0]
    assert found(Output("", ("mass", "age"), "values"), rename={"mass": "size"}) == [size, age]
    assert found(Output("body", ("size", "age"), "values")) == [size, age], "a lone head has no name"
    assert found(Output("", ("a", "b"), "values"), head="keep") == [age, size]
    with pytest.raises(UserError, match=r"run:other has no number for 'mass' to learn from; .*losses\.teacher\.adapt\.rename"):
        found(Output("", ("mass", "age"), "values"))
    a_run(
        tmp_path / "multi", monkeypatch, "multi",
        Known(Target("body", "values", ("age", "size")), (), (9, 9), (40.0, 2.0), (10.0, 0.5)),
        Known(Target("kind", "class", ("a", "b")), (1, 1), (2,)),
    )  # fmt: skip
    assert found(Output("kind", ("b", "a")), Output("body", ("size", "age"), "values")) == [[1.0, 0.0], [1.0, 0.0], size, age]
    assert found(Output("", ("size",), "values"), take="body") == [size]
    heads = {"shape": {"take": "body", "rename": {"mass": "size"}}}
    assert found(Output("kind", ("a", "b")), Output("shape", ("mass",), "values"), heads=heads)[2:] == [size]
    with pytest.raises(UserError, match=r"no number for 'size' to learn from; .*losses\.teacher\.adapt\.take"):
        found(Output("", ("size",), "values"))
