"""`run:NAME`: runs whose source is another run, trained for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.trainers import Zygote, run_file
from trainer.checkpoint import Store
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.load import dump
from trainer.config.run import Model
from trainer.models import build_model, needs
from trainer.models.heads import Attention, Mlp
from trainer.restored import restore
from trainer.rundir import RunDir
from trainer.spec import Output

DIGITS = tuple("01234")
SHORT = {"steps": 6, "ema": 0.5}


def train(
    zygote: Zygote, runs: Path, name: str, source: str | None, classes: str, layers: dict[str, Any] | None = None, **more: object
) -> RunDir:  # fmt: skip
    made: dict[str, Any] = {} if layers is None else {"layers": layers}
    if source is not None:
        model = {"model": {"source": source, "weights": "best", "adapt": {"in_channels": 1, "image_size": None, **made}}}
    else:
        model = {"model": {"adapt": {"in_channels": 1, "image_size": 8, **made}}} if made else {}
    data = {"train": f"digits:{classes}/train", "val": f"digits:{classes}/val", "normalize": "auto" if source else "half"}
    file = run_file(runs.parent / name, name=name, train=SHORT, evaluate={"every": "3 steps"}, data=data, **model, **more)
    (rank,) = zygote.start(file, runs)
    assert rank.wait() == 0, rank.text()
    return RunDir(runs / name)


def test_a_graft_of_a_graft_of_a_graft(tmp_path: Path, zygote: Zygote) -> None:
    runs = tmp_path / "runs"
    first = train(zygote, runs, "first", None, "0-4")
    second = train(zygote, runs, "second", f"run:{first.path}", "3-7", strategy={"kind": "head"})
    third = train(zygote, runs, "third", f"run:{second.path}", "5-9", strategy={"kind": "head"})
    one, two, three = (restore(folder, "best") for folder in (first, second, third))
    assert two.spec == one.spec
    assert three.spec == one.spec
    trunk = [name for name, value in one.network.named_parameters() if value.shape[0] != 5]
    assert trunk
    for name in trunk:  # only heads learnt after the first
        torch.testing.assert_close(three.network.state_dict()[name], one.network.state_dict()[name], rtol=0, atol=0)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    again = build_model(Model(source=f"run:{third.path}", adapt=Adapt(in_channels=1)), "auto", three.task.outputs, 0)
    assert not again.fresh
    with torch.no_grad():
        torch.testing.assert_close(again.network.eval()(images), three.network(images), rtol=0, atol=0)
    shared = build_model(Model(source=f"run:{first.path}", adapt=Adapt(in_channels=1)), "auto", two.task.outputs, 0)
    head = shared.network.state_dict()[f"{shared.head[0]}.weight"]
    torch.testing.assert_close(head[:2], one.network.state_dict()[f"{shared.head[0]}.weight"][3:], rtol=0, atol=0)


@pytest.mark.parametrize(
    "layers", [{"kind": "mlp", "width": 12, "norm": True}, {"kind": "attention", "num_heads": 2, "dropout": 0.1}]
)
def test_a_head_of_several_layers_survives_a_graft_of_a_graft(tmp_path: Path, zygote: Zygote, layers: dict[str, Any]) -> None:
    runs = tmp_path / "runs"
    first = train(zygote, runs, "first", None, "0-4", layers)
    second = train(zygote, runs, "second", f"run:{first.path}", "0-4", strategy={"kind": "head"})  # says nothing of layers
    one, two = restore(first, "best"), restore(second, "best")
    heads: list[Any] = [restored.network.head for restored in (one, two)]
    kind = {"mlp": Mlp, "attention": Attention}[layers["kind"]]
    assert all(isinstance(head, kind) for head in heads)
    assert heads[0].arguments == heads[1].arguments
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    again = build_model(Model(source=f"run:{second.path}", adapt=Adapt(in_channels=1)), "auto", (Output("", DIGITS),), 0)
    assert not again.fresh
    with torch.no_grad():
        torch.testing.assert_close(again.network.eval()(images), two.network(images), rtol=0, atol=0)
    shared = build_model(Model(source=f"run:{second.path}", adapt=Adapt(in_channels=1)), "auto", (Output("", ("4", "x")),), 0)
    old, new = again.network.state_dict(), shared.network.state_dict()
    assert torch.equal(new["head.out.weight"][0], old["head.out.weight"][4])
    layer = "head.hidden.0.weight" if layers["kind"] == "mlp" else "head.query"
    assert torch.equal(new[layer], old[layer])
    linear = Adapt.model_validate({"in_channels": 1, "layers": {"kind": "linear"}})
    plain = build_model(Model(source=f"run:{second.path}", adapt=linear), "auto", (Output("", DIGITS),), 0)
    assert plain.fresh == ("head.weight", "head.bias")
    assert plain.network(images).shape == (4, 5)


def test_a_run_with_several_heads_gives_each_to_the_head_of_its_name(tmp_path: Path, zygote: Zygote) -> None:
    """The checkpoint is put into the run's folder by hand; what reads it is what reads any other."""
    folder = train(zygote, tmp_path / "runs", "first", None, "0-4")
    two = (Output("digit", ("0", "1", "2")), Output("is it round?", ("no", "yes")))
    heads = {"digit": {"layers": {"kind": "attention", "num_heads": 2}}}
    run = folder.load()
    adapt = Adapt.model_validate({**run.model.adapt.model_dump(), "heads": heads})
    folder.config.write_text(dump(run.model_copy(update={"model": run.model.model_copy(update={"adapt": adapt})})))
    made = build_model(folder.load().model, "none", two, 3)
    last = Store(folder.checkpoints, keep=1).named("last")
    saved = save(made.network.state_dict())
    state = {**last.state, "outputs": [[output.name, list(output.labels)] for output in two]}
    Store(folder.checkpoints, keep=1).commit(99, {"model.safetensors": memoryview(saved)}, state, best=1.0)
    source = Model(source=f"run:{folder.path}", weights="99", adapt=Adapt(in_channels=1))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    again = build_model(source, "auto", two, 0)
    assert not again.fresh
    with torch.no_grad():
        torch.testing.assert_close(again.network.eval()(images), made.network.eval()(images), rtol=0, atol=0)
    other = (Output("is it round?", ("yes", "no")), Output("colour", ("grey", "yes")), Output("digit", ("2", "9")))
    mixed = build_model(source, "auto", other, 0)
    old, new = made.network.state_dict(), mixed.network.state_dict()
    assert torch.equal(new["head.is_it_round_.weight"], old["head.is_it_round_.weight"][[1, 0]])
    assert torch.equal(new["head.digit.key.weight"], old["head.digit.key.weight"])
    assert torch.equal(new["head.digit.out.weight"][0], old["head.digit.out.weight"][2])
    assert mixed.fresh == ("head.colour.weight", "head.colour.bias")
    assert mixed.network(images).shape == (4, 6)
    alone = Model(source=f"run:{folder.path}", weights="99", adapt=Adapt.model_validate({"in_channels": 1, "take": "digit"}))
    digit = build_model(alone, "auto", (Output("", ("2", "0")),), 0)
    assert not digit.fresh
    with torch.no_grad():
        torch.testing.assert_close(digit.network.eval()(images), made.network(images)[:, [2, 0]])


def test_what_a_run_has_not_is_named(tmp_path: Path, zygote: Zygote) -> None:
    folder = train(zygote, tmp_path / "runs", "first", None, "0-4")
    outputs = (Output("", tuple("abcde")),)
    with pytest.raises(UserError, match="no checkpoint '99'"):
        build_model(Model(source=f"run:{folder.path}", weights="99", adapt=Adapt(in_channels=1)), "auto", outputs, 0)
    with pytest.raises(UserError, match="of a run there are best, last, a step, or none"):
        build_model(Model(source=f"run:{folder.path}", weights="DEFAULT", adapt=Adapt(in_channels=1)), "auto", outputs, 0)
    files = [need.file for need in needs(Model(source=f"run:{folder.path}"))]
    assert all(file.is_file() for file in files)
    weights = next(file for file in files if file.name == "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"damaged: model\.safetensors has"):
        build_model(Model(source=f"run:{folder.path}", adapt=Adapt(in_channels=1)), "auto", outputs, 0)
