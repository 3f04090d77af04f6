"""Translation without pairs: which picture stands beside which, the losses of the paper, the networks, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import painter
from trainer.config import Run, UserError
from trainer.config.adapt import Adapt
from trainer.config.model import Model
from trainer.config.sources import Splits, open_splits
from trainer.config.targets import Facts
from trainer.config.tasks.cycle import Config
from trainer.data import Batch, order
from trainer.data.pairs import dataset_of, loaded
from trainer.data.unpaired import UnpairedDataset
from trainer.forecast import prepare
from trainer.models import build_model
from trainer.models.both import Both
from trainer.models.critic import Several, build_critic
from trainer.pixels import pixels
from trainer.spec import Cyclic, InputSpec, Translator
from trainer.tasks.cycle import Cycle, build
from trainer.tasks.likeness import distances

OWN = Path(painter.__file__)
SPEC = InputSpec(3, 8, (0.5,) * 3, (0.5,) * 3)
CPU = torch.device("cpu")


def run(source: Path | str, task: Mapping[str, Any] | None = None, **sections: Any) -> Run:
    data = {"train": str(source), "workers": 0, **sections.pop("data", {})}
    model = sections.pop("model", {"source": "torchvision:resnet18"})
    return Run.model_validate({
        "name": "cycle", "task": {"kind": "cycle", **(task or {})}, "model": model, "strategy": {"kind": "full"},
        "optimizer": {"kind": "adam", "lr": 1e-3}, "data": data, **sections,
    })  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    painter.photographs(tmp_path / "b", 7, 0, size=8)
    painter.photographs(tmp_path / "a", 3, 1, size=8)
    return tmp_path


def dataset(one: Run, *, train: bool = True) -> UnpairedDataset:
    found = dataset_of(one, splits(one).train, SPEC, train=train)
    assert isinstance(found, UnpairedDataset)
    return found


def splits(one: Run) -> Splits:
    return open_splits(one.data, 0, looks_at=one.task.looks_at)


def test_which_picture_stands_beside_which_is_a_function_of_seed_epoch_and_sample(folder: Path) -> None:
    one = run(f"folder:{folder}", data={"augment": {"flip": 0.5}})
    data = dataset(one)
    keys = [(epoch, index) for epoch in range(21) for index in range(10)]
    beside = {key: data.partner(key) for key in keys}
    of_first, of_second = ([beside[key] for key in keys if (key[1] < 3) == first] for first in (True, False))
    assert set(Counter(of_first).values()) == {9}, "63 samples of the first class, 7 of the second beside them"
    assert set(Counter(of_second).values()) == {49}
    assert of_first[:21] != of_first[21:42]
    assert dataset(run(f"folder:{folder}", train={"seed": 3})).partner((0, 0)) != beside[0, 0]

    batch = data.fetch([(5, 8), (4, 1), (5, 2)])
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.indices.tolist() == [1, 2, 8]
    assert torch.equal(dataset(one).fetch([(4, 1)]).images[0], batch.images[0])
    plain = dataset(run(f"folder:{folder}"))
    whole = plain.fetch([(5, 8), (4, 1), (5, 2)]).images
    held = plain._sides[1].plain([(0, beside[4, 1])]).images[0]
    assert torch.equal(whole[0, 3:], held), "the second class, whichever of both is the sample"
    assert torch.equal(whole[2, :3], plain._sides[0].plain([(0, beside[5, 8])]).images[0])
    normal = batch.to(CPU, loaded(one, SPEC)).images
    assert torch.allclose(normal, batch.images / 127.5 - 1, atol=1e-5)

    measured = dataset(one, train=False).fetch([(0, 2), (0, 9)])
    assert not bool(measured.images[0, 3:].any())
    assert not bool(measured.images[1, :3].any())
    assert bool(measured.images[0, :3].any())


def test_what_cannot_be_read_is_replaced_by_one_of_its_own_class(folder: Path) -> None:
    (folder / "a" / "002.png").write_bytes(b"none")
    one = run(f"folder:{folder}", data={"max_bad": 1})
    found = dataset(one).fetch([(0, 2)])
    assert found.labels.tolist() == [0]
    assert found.indices.tolist() == [0]
    assert [Path(path).name for path, _ in found.bad] == ["002.png"]
    assert dataset(one, train=False).fetch([(0, 2), (0, 3)]).indices.tolist() == [3]


def test_grey_and_colour_are_two_classes_as_well(folder: Path) -> None:
    one = run(f"folder:{folder}", {"channels": 3})
    data = dataset_of(one, splits(one).train, InputSpec(1, 8, (0.5,), (0.5,)), train=True)
    assert data.fetch([(0, 0), (0, 9)]).images.shape == (2, 4, 8, 8)


def test_an_epoch_of_the_longer_class_sorts_no_order_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_ = Counter[tuple[int, int, int]]()
    whole = order.permutation

    def counted(n: int, seed: int, epoch: int) -> Any:
        sorted_[n, seed, epoch] += 1
        return whole(n, seed, epoch)

    monkeypatch.setattr(order, "permutation", counted)
    painter.photographs(folder / "b", 40, 0, size=8)
    for sampling in ("uniform", "balanced"):
        data = dataset(run(f"folder:{folder}", data={"sampling": {"kind": sampling}}))
        keys = data.order(0).slice(0, 2 * len(data))
        sorted_.clear()
        beside = [data.partner(key) for key in keys]
        assert len(sorted_) > 2
        assert set(sorted_.values()) == {1}
        if sampling == "balanced":
            assert max(epoch for epoch, _ in keys) > 1 << 32
            shorter = Counter(of for of, (_, index) in zip(beside, keys, strict=True) if index < 3)
            longer = Counter(of for of, (_, index) in zip(beside, keys, strict=True) if index >= 3)
            assert max(shorter.values()) - min(shorter[of] for of in range(40)) <= 2, "evenly, though they come again and again"
            assert set(longer) == {0, 1, 2}


class Half(nn.Module):
    """Makes a picture darker or lighter by a part that is learnt."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = nn.Parameter(torch.tensor([part]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, c, h, w]."""
        return images * self.part


@pytest.mark.parametrize("kind", ["lsgan", "hinge"])
def test_the_losses_are_those_of_the_paper(kind: str) -> None:
    config = Config.model_validate({"kind": "cycle", "losses": ["adversarial", "cycle", "identity"], "adversary": {"loss": kind}})
    task = build(config, Facts.plain(("a", "b"), (3, 3)))
    task.fit(SPEC, nn.Identity(), 0)
    critics = Several([build_critic(one, 8, seed) for seed, one in enumerate(small(task))])
    judge = task.oppose(critics)
    network = Both(Half(0.5), Half(3.0))
    first, second = torch.randn(2, 4, 3, 8, 8)
    batch = Batch(torch.cat([first, second], dim=1), torch.zeros(4), torch.arange(4))
    found = task.losses(task.run(network, batch), batch)

    def l1(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).abs().mean(dim=(1, 2, 3))

    assert torch.allclose(found["cycle"], l1(first * 1.5, first) + l1(second * 1.5, second))
    assert torch.allclose(found["identity"], l1(second * 0.5, second) + l1(first * 3, first))
    assert config.weights == {"cycle": 10, "identity": 5}
    assert torch.allclose(task.weighted(found), found["adversarial"] + 10 * found["cycle"] + 5 * found["identity"])
    said = [critic(made) for critic, made in zip(critics, (second * 3, first * 0.5), strict=True)]
    maker = [-answer if kind == "hinge" else (answer - 1).square() for answer in said]
    assert torch.allclose(found["adversarial"], sum(loss.mean(dim=(1, 2, 3)) for loss in maker), atol=1e-5)
    torch.autograd.backward(torch.stack(list(found.values())).sum())
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critics.parameters())

    before = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    own = judge(critics, batch)
    real = [critic(images) for critic, images in zip(critics, (first, second), strict=True)]
    each = [
        (1 - r).relu() + (1 + m).relu() if kind == "hinge" else (r - 1).square() + m.square()
        for r, m in zip(real, said, strict=True)
    ]
    assert torch.allclose(own, sum(loss.mean(dim=(1, 2, 3)) for loss in each), atol=1e-5)
    torch.autograd.backward(own.sum())
    assert all(parameter.grad is not None for parameter in critics.parameters())
    after = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), "the critics' loss is theirs alone"


class Colours:
    """A judge whose features are the means of the channels."""

    name, widths, layers = "colours", {"mean": 3}, {"fid": "mean", "kid": "mean"}

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """[n, 3]."""
        return {"mean": images.float().mean(dim=(2, 3)) / 255}


def test_what_is_made_is_compared_with_the_other_class() -> None:
    fidelity = {"measure": ["kid", "fid"], "features": {"source": "torchvision:resnet18", "weights": "DEFAULT"}}
    config = Config.model_validate({"kind": "cycle", "fidelity": fidelity})
    task = build(config, Facts.plain(("a", "b"), (6, 4)))
    task.liken(Colours())
    names = ["kd_resnet18_forth", "fd_resnet18_forth", "kd_resnet18_back", "fd_resnet18_back"]
    assert list(task.measure(0, CPU).result().metrics)[3:] == names
    assert list(config.measured())[3:] == names
    task.fit(SPEC, nn.Identity(), 0)
    network = Both(Half(0.5), Half(-1.0))
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0, 1, 0])
    real = torch.rand(10, 3, 1, 1).expand(-1, -1, 8, 8) * 2 - 1
    images = torch.zeros(10, 6, 8, 8)
    images[labels == 0, :3], images[labels == 1, 3:] = real[labels == 0], real[labels == 1]
    judge = Colours()
    assert config.fidelity is not None
    for scale in (1.0, 0.5):  # another network, against the features that are kept of the classes
        measure = task.measure(10, CPU)
        network.get_parameter("forth.part").data.fill_(0.5 * scale)
        for rows in (torch.arange(0, 7), torch.arange(7, 10)):
            measure.update(network, Batch(images[rows], labels[rows], rows))
        found = measure.result().metrics
        for way, own, factor in (("forth", 0, 0.5 * scale), ("back", 1, -1.0)):
            made, other = judge(pixels(real[labels == own] * factor)), judge(pixels(real[labels != own]))
            wanted = distances(config.fidelity, made, other, judge.layers)
            for name, value in wanted.items():
                assert found[f"{name}_{way}"] == pytest.approx(value, abs=1e-9)
    with pytest.raises(ValueError, match=r"task\.fidelity is measured at evaluations"):
        run("folder:x", {"fidelity": fidelity})
    assert run("folder:x", {"fidelity": fidelity}, data={"val": "folder:y"}).models.keys() == {"model", "task.fidelity.features"}


def test_the_best_is_chosen_by_the_first_distance_of_the_way_forth() -> None:
    own = {"source": f"python:{OWN}:trunk", "weights": "x"}
    asked = {"residual": True, "fidelity": {"measure": ["kid", "fid"], "features": own}}
    assert run("folder:x", asked, data={"val": "folder:y"}).checkpoint.best == "val/kd_trunk_forth"
    assert run("folder:x", data={"val": "folder:y"}).checkpoint.best == "val/loss"


def test_a_class_with_too_few_validation_pictures_is_named_before_a_training(folder: Path) -> None:
    val = folder.parent / f"{folder.name}-val"
    painter.photographs(val / "a", 3, 2, size=8)
    painter.photographs(val / "b", 4, 3, size=8)
    model = {"source": f"python:{OWN}:trunk", "adapt": {"image_size": 8}}
    asked = {"fidelity": {"measure": ["kid", "precision_recall"], "features": {**model, "weights": "x"}}}
    few = run(f"folder:{folder}", asked, model=model, data={"val": f"folder:{val}"})
    with pytest.raises(UserError, match=r"has 3 pictures of 'a', and task\.fidelity\.measure: precision_recall needs 4 at least"):
        prepare(few, 1)
    painter.photographs(val / "a", 4, 2, size=8)
    assert prepare(few, 1).task.outputs == ()


def small(task: Cycle) -> list[Any]:
    return [replace(one, width=8, layers=1) for one in task.critic()]


def test_two_networks_each_with_a_decoder_of_its_own() -> None:
    config = Model(source="torchvision:resnet18", adapt=Adapt(in_channels=1, image_size=32), weights="none")
    found = build_model(config, "auto", Cyclic(Translator(3, 8, residual=True)), 0)
    network: Any = found.network
    grey, colour = torch.rand(2, 1, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    made = network(grey, colour, False)
    assert [tuple(value.shape[:2]) for value in made] == [(2, 3), (2, 1), (2, 1), (2, 3)]
    assert torch.allclose(made[0], grey.expand(-1, 3, -1, -1), atol=1e-5), "each begins with its input"
    luma = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    assert torch.allclose(made[1], luma, atol=1e-5)
    assert found.spec == InputSpec(1, 32, (0.5,), (0.5,), found.spec.interpolation)
    names = set(dict(network.named_parameters()))
    assert set(found.fresh) <= names
    forth, back = (dict(way.network.named_parameters()) for way in (network.forth, network.back))
    assert not torch.equal(forth["network.decoder.neck.weight"], back["network.decoder.neck.weight"]), "drawn apart"


def test_a_way_back_of_another_kind() -> None:
    own = Model(source=f"python:{OWN}:painter", adapt=Adapt(in_channels=1, image_size=16))
    with pytest.raises(UserError, match=r"the way back, from 3 channels to 1: .*is named as task\.back"):
        build_model(own, "auto", Cyclic(Translator(3, 8)), 0)
    other = Model(source=f"python:{OWN}:trunk")
    network = build_model(own, "auto", Cyclic(Translator(3, 8), other), 0).network
    made = network(torch.rand(2, 1, 16, 16), torch.rand(2, 3, 16, 16), False)
    assert [value.shape[1] for value in made] == [3, 1, 1, 3]
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    back: Any = network.get_submodule("back").eval()
    image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(back(image * 2 - 1), back.network((image - mean) / std), atol=1e-5), "as its trunk wants it"


@pytest.mark.parametrize(
    ("task", "sections", "message"),
    [
        ({"losses": ["adversarial"]}, {}, "without pairs both are needed: write"),
        ({}, {"losses": {"balance": {"kind": "match"}}}, "write losses.weights: {cycle: 10}"),
        ({}, {"strategy": {"kind": "blocks", "last": 1}}, "counts the blocks of one network, and task cycle trains two"),
        ({"channels": 1, "losses": ["adversarial", "cycle", "identity"]}, {}, "the classes have 3 and 1 channels; leave it out"),
        ({}, {"parallel": {"kind": "zero2"}}, "has not been tried with task cycle"),
        (
            {"residual": True},
            {"data": {"val": "folder:y"}},
            "by val/loss .checkpoint.best. nothing is better; write task.fidelity",
        ),
        (
            {"residual": True, "fidelity": {"measure": ["kid"]}},
            {"data": {"val": "folder:y"}, "schedule": {"kind": "plateau", "metric": "val/loss"}},
            "by val/loss .schedule.metric. nothing is better",
        ),
        ({"adversary": {"shown_input": True}}, {}, "shown_input"),
    ],
)
def test_what_does_not_go_together(task: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("folder:x", task, **sections)


def test_sides_that_lack_are_named(folder: Path) -> None:
    painter.photographs(folder / "c", 3, 2, size=8)
    with pytest.raises(UserError, match=r"has 3 classes \(a, b, c\), and task cycle goes between two; write data.classes"):
        run(f"folder:{folder}").fits(splits(run(f"folder:{folder}")).train.facts)
    chosen = run(f"folder:{folder}", data={"classes": ["c", "a"]})
    chosen.fits(splits(chosen).train.facts)
    assert splits(chosen).train.classes == ("c", "a"), "the first is what pictures are made of"
    (folder / "val" / "a").mkdir(parents=True)
    (folder / "val" / "c").mkdir()
    painter.photographs(folder / "val" / "a", 2, 3, size=8)
    with pytest.raises(UserError, match="class 'c' is empty"):
        splits(run(f"folder:{folder}", data={"classes": ["c", "a"], "val": f"folder:{folder}/val"}))
    (folder / "val" / "c").rmdir()
    with pytest.raises(UserError, match="only one class, 'a'"):
        splits(run(f"folder:{folder}/val"))
