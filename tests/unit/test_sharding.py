"""What cannot be shared out is refused before anything starts; what can be does not depend on how it is cut."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainers import run_file
from trainer.config import UserError
from trainer.config.load import load
from trainer.config.optimizers import SGD, Adam, AdamW, Optimizer, Timm, Torch
from trainer.config.sharding import _BY_NUMBER
from trainer.optim import build_optimizer
from trainer.runtime.zero import prepare_process
from trainer.spec import ParamGroup

TEACHER = {"losses": {"teacher": {"source": "torchvision:resnet18", "weights": "best"}, "add": {"soft": {"kind": "logits"}}}}
NEAR = {"losses": {"add": {"near": {"kind": "l2_sp"}}}, "model": {"source": "torchvision:resnet18", "weights": "best"}}
FREE = {"optimizer": {"kind": "schedule_free", "lr": 1e-3}, "schedule": {"kind": "constant"}}
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("zero2", {"optimizer": {"kind": "timm", "name": "lamb", "lr": 1e-3}}, {}, "timm's lamb looks at whole layers; choose one"),
    ("fsdp", {"optimizer": {"kind": "timm", "name": "bnbadamw8bit", "lr": 1e-3}}, {}, "bnbadamw8bit keeps its state in blocks"),
    ("zero1", {"optimizer": {"kind": "timm", "name": "adamw", "lr": 1e-3, "args": {"caution": True}}}, {}, "args.caution looks"),
    ("zero3", {"optimizer": {"kind": "torch", "name": "Adafactor", "lr": 1e-3}}, {}, "torch's Adafactor looks at whole"),
    ("zero3", {"optimizer": {"kind": "prodigy"}}, {}, "prodigy looks at all parameters at once; write adamw"),
    (
        "zero1",
        {"optimizer": {"kind": "schedule_free", "lr": 1e-3}, "schedule": {"kind": "constant"}},
        {},
        "own average; write adamw",
    ),
    ("zero2", TEACHER, {"losses": {"balance": {"kind": "gradnorm"}}}, "gradnorm takes gradients of its own"),
    ("fsdp", TEACHER, {"losses": {"balance": {"kind": "adatask"}}}, "adatask takes gradients of its own"),
    ("zero3", TEACHER, {"losses": {"balance": {"kind": "match"}}}, "match takes gradients of its own"),
    ("zero3", NEAR, {}, "losses.add.near looks at the weights, which no rank holds whole; write zero2"),
    ("fsdp", {"train": {"steps": 2, "precision": "fp16"}}, {}, "fp16, whose scale has not been shared out; write bf16"),
    ("ddp", {}, {"parallel": {"offload": "cpu"}}, "ddp has none; write kind: zero2"),
    ("zero3", {}, {"parallel": {"offload": "nvme"}}, "no checkpoint can be made yet; write offload: cpu"),
    ("zero3", {}, {"parallel": {"reshard_after_forward": False}}, "is of fsdp, and kind is zero3"),
]


@pytest.mark.parametrize(("kind", "replaced", "added", "said"), REFUSED)
def test_what_cannot_be_shared_out_is_refused(
    tmp_path: Path, kind: str, replaced: dict[str, Any], added: dict[str, Any], said: str
) -> None:
    path = run_file(tmp_path, train={"clip": None})
    run = {**json.loads(path.read_text()), **replaced}
    if run["optimizer"]["kind"] == "schedule_free":
        run["train"].pop("ema", None)
    for section, values in {"parallel": {}, **added}.items():
        run[section] = {**run.get(section, {}), **values}
    run["parallel"]["kind"] = kind
    path.write_text(json.dumps(run))
    with pytest.raises(UserError) as error:
        load(path)
    assert said in " ".join(str(error.value).split())


ALIKE: list[Optimizer] = [SGD(lr=0.1), Adam(lr=0.1), AdamW(lr=0.1)]
ALIKE += [Timm(name=name, lr=0.1, weight_decay=0.1) for name in _BY_NUMBER["timm"]]
ALIKE += [Torch(name=name, lr=0.1) for name in _BY_NUMBER["torch"]]


@pytest.mark.parametrize("config", ALIKE, ids=lambda config: config.identity)
def test_it_does_not_matter_how_what_an_optimizer_holds_is_cut(config: Optimizer) -> None:
    """Two matrices, against the numbers of both in one row that begins and ends within them."""
    torch.manual_seed(0)
    values, gradients = torch.randn(24), torch.randn(4, 24) * torch.logspace(-2, 1, 24)
    whole = [nn.Parameter(part.clone().view(3, 4)) for part in torch.split(values, 12)]
    cut = [nn.Parameter(part.clone()) for part in torch.split(values, [7, 9, 8])]
    for parameters, sizes in ((whole, [12, 12]), (cut, [7, 9, 8])):
        optimizer = build_optimizer(config, [ParamGroup([(str(n), p) for n, p in enumerate(parameters)])])
        for gradient in gradients:
            for parameter, part in zip(parameters, torch.split(gradient, sizes), strict=True):
                parameter.grad = part.view_as(parameter).clone()
            optimizer.step()
    found, wanted = (torch.cat([p.detach().flatten() for p in parameters]) for parameters in (cut, whole))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert not torch.equal(wanted, values)


def test_without_deepspeed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"pip install 'graft-trainer\[zero\]', or parallel.kind: fsdp"):
        prepare_process(True, timedelta(seconds=9))
