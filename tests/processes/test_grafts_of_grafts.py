"""`run:NAME`: runs whose source is another run, trained for real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainers import Zygote, run_file
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models import build_model, needs
from trainer.restored import restore
from trainer.rundir import RunDir
from trainer.spec import Output

SHORT = {"steps": 6, "ema": 0.5}


def train(zygote: Zygote, runs: Path, name: str, source: str | None, classes: str, **more: object) -> RunDir:
    model = (
        {}
        if source is None
        else {"model": {"source": source, "weights": "best", "adapt": {"in_channels": 1, "image_size": None}}}
    )
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
