"""Folds, few-shot subsets, sampling and mixing: exact proportions, and functions of (seed, epoch, sample) alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launcher.sweep.folds import over_folds
from trainer.config import UserError
from trainer.config.data import Data
from trainer.config.folds import fraction
from trainer.config.sampling import rates
from trainer.config.sources import Splits, open_splits
from trainer.config.targets import Facts
from trainer.config.tasks.classify import Config
from trainer.data import Batch, ImageDataset, train_batches
from trainer.data.augment import Erase
from trainer.data.order import WeightedOrder
from trainer.rundir.sweep import Row
from trainer.spec import InputSpec
from trainer.tasks.classify import Classify

SPEC = InputSpec(3, 12, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv of 40, 12 and 5 images with weights, and groups of up to three."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    rows = ["image,label,weight,patient"]
    for name, count in (("ant", 40), ("bee", 12), ("cat", 5)):
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(root / f"{name}{index:02d}.png")
            rows.append(f"{name}{index:02d}.png,{name},{1 + index % 4 / 2},{name[0]}{index // 3}")
    (root / "rows.csv").write_text("\n".join(rows))
    return root


def data(root: Path, query: str = "", **keys: Any) -> Data:
    return Data.model_validate({"train": f"csv:{root}/rows.csv{query}", **keys})


def splits(root: Path, query: str = "", seed: int = 0, **keys: Any) -> Splits:
    return open_splits(data(root, query, **keys), seed)


def dataset(root: Path, **keys: Any) -> ImageDataset:
    asked = data(root, **keys)
    return ImageDataset(open_splits(asked, 0).train, asked, SPEC, train=True, seed=4)


def steps(found: ImageDataset, **keys: Any) -> Iterator[list[Batch]]:
    standard = {"seed": 4, "start_step": 0, "steps": 9, "global_batch": 8, "micro_batch": 8, "rank": 0, "world": 1, "workers": 0}
    return train_batches(found, **{**standard, "pin": False, **keys})


# --- folds, groups, subsets


@pytest.mark.parametrize("query", ["", "?group=patient"])
def test_folds_are_disjoint_complete_and_stratified(root: Path, query: str) -> None:
    parts = [splits(root, query, val=f"fold:{k}/3", min_per_class=1) for k in (1, 2, 3)] if query == "" else [
        splits(root, query, val=f"fold:{k}/2", min_per_class=1) for k in (1, 2)
    ]  # fmt: skip
    held = [{item.key for item in part.val.items} for part in parts if part.val is not None]
    everything = {f"{n}{i:02d}.png" for n, count in (("ant", 40), ("bee", 12), ("cat", 5)) for i in range(count)}
    assert sum(map(len, held)) == 57
    assert set().union(*held) == everything
    for part, out in zip(parts, held, strict=True):
        assert {item.key for item in part.train.items} == everything - out
        assert part.val is not None
        if query:
            assert not {i.group for i in part.train.items} & {i.group for i in part.val.items}
        slack = 3 if query else 1
        assert all(abs(n - total / len(parts)) <= slack for n, total in zip(part.val.counts(), (40, 12, 5), strict=True))
    if not query:
        assert max(map(len, held)) - min(map(len, held)) <= 1
    assert parts[0] == splits(root, query, val=f"fold:1/{len(parts)}", min_per_class=1)
    assert parts[0] != splits(root, query, 1, val=f"fold:1/{len(parts)}", min_per_class=1)
    assert parts[0] == splits(root, query, 1, val=f"fold:1/{len(parts)}", min_per_class=1, split_seed=0)


def test_groups_stay_together_in_a_share(root: Path) -> None:
    both = splits(root, "?group=patient", val="split:0.4", min_per_class=1)
    assert both.val is not None
    assert not {i.group for i in both.train.items} & {i.group for i in both.val.items}
    assert all(abs(n - 0.4 * total) <= 2 for n, total in zip(both.val.counts(), (40, 12, 5), strict=True))


@pytest.mark.parametrize("text", ["fold:0/5", "fold:6/5", "fold:1/1", "fold:x", "fold:"])
def test_fold_mistakes(root: Path, text: str) -> None:
    with pytest.raises(UserError, match="fold:1/5 to fold:5/5"):
        splits(root, val=text)


def test_more_folds_than_images_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"class 'cat' \(5 images\) has no image in this part"):
        [splits(root, val=f"fold:{k}/9", min_per_class=1) for k in range(1, 10)]


def test_fractions_are_nested_and_stratified(root: Path) -> None:
    before: set[str] = set()
    for share in (0.01, 0.1, 0.2, 0.5, 1.0):
        found = splits(root, fraction=share, min_per_class=1).train
        keys = {item.key for item in found.items}
        assert before <= keys
        assert found.counts() == [fraction(n, share) for n in (40, 12, 5)]
        before = keys
    assert len(before) == 57
    with pytest.raises(ValueError, match="write one of them"):
        data(root, fraction=0.1, per_class=3)


# --- sampling


def epoch(found: ImageDataset, number: int) -> list[tuple[int, int]]:
    return found.order(4).slice(number * 57, number * 57 + 57)


def test_balanced_is_exact_in_every_epoch_and_goes_through_all(root: Path) -> None:
    found = dataset(root, sampling={"kind": "balanced"})
    labels = [item.label for item in found.listing.items]
    total: Counter[int] = Counter()
    for number in range(30):
        keys = epoch(found, number)
        assert Counter(labels[index] for _, index in keys) == {0: 19, 1: 19, 2: 19}
        assert len(set(keys)) == 57  # a repetition has a key, and so an augmentation, of its own
        total.update(index for _, index in keys)
    for index, label in enumerate(labels):
        assert abs(total[index] - 30 * 19 / (40, 12, 5)[label]) <= 2
    assert epoch(found, 3) != epoch(found, 4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_powers_smooth(root: Path, power: float) -> None:
    found = dataset(root, sampling={"kind": "balanced", "power": power})
    labels = [item.label for item in found.listing.items]
    wanted = np.array([40, 12, 5]) ** power
    wanted = 57 * wanted / wanted.sum()
    for number in range(5):
        counts = Counter(labels[index] for _, index in epoch(found, number))
        assert all(abs(counts[label] - wanted[label]) < 1 for label in range(3))


def test_weights_of_classes_and_columns(root: Path) -> None:
    asked = data(root, "?weight=weight", sampling={"kind": "weighted", "classes": {"bee": 2.0}})
    listing = open_splits(asked, 0).train
    wanted = np.array([item.weight * (2 if item.label == 1 else 1) for item in listing.items])
    wanted = wanted / wanted.sum() * 57
    assert np.allclose(rates(listing, asked) or [], wanted)
    order = WeightedOrder(wanted, np.array([item.label for item in listing.items]), 0)
    total: Counter[int] = Counter()
    for number in range(20):
        counts = Counter(index for _, index in order.slice(number * 57, number * 57 + 57))
        assert all(np.floor(wanted[i]) <= counts[i] <= np.ceil(wanted[i]) for i in range(57))
        total.update(counts)
    assert all(abs(total[i] - 20 * wanted[i]) <= 2 for i in range(57))


def test_sampling_mistakes(root: Path) -> None:
    for sampling, words in (
        ({"kind": "weighted"}, "no weight is given"),
        ({"kind": "weighted", "classes": {"bees": 2.0}}, "'bees' is not in data.train; did you mean 'bee'"),
        ({"kind": "weighted", "classes": {"bee": 0.0}}, "class 'bee' has the weight 0"),
        ({"kind": "weighted", "classes": {"ant": 0.0, "bee": 0.0, "cat": 0.0}}, "weights are all 0"),
    ):
        with pytest.raises(UserError, match=words):
            dataset(root, sampling=sampling)


# --- one stream, however it is cut

MIXED = {"sampling": {"kind": "balanced", "power": 0.5}, "mix": {"mixup": 0.4, "cutmix": 1.0, "probability": 0.8},
         "augment": {"flip": 0.5, "auto": "rand"}}  # fmt: skip


def flat(batches: Iterator[list[Batch]]) -> list[tuple[torch.Tensor, ...]]:
    """Images, targets, labels and indices of each step."""
    return [
        tuple(torch.cat([getattr(b, name) for b in group]) for name in ("images", "targets", "labels", "indices"))
        for group in batches
    ]


def equal(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_ranks_workers_micro_batches_and_resumes_change_nothing(root: Path) -> None:
    whole = flat(steps(dataset(root, **MIXED)))
    equal(flat(steps(dataset(root, **MIXED), workers=2)), whole)
    equal(flat(steps(dataset(root, **MIXED), micro_batch=3)), whole)
    equal(flat(steps(dataset(root, **MIXED), start_step=5)), whole[5:])
    ranks = [flat(steps(dataset(root, **MIXED), rank=rank, world=2, workers=rank)) for rank in range(2)]
    equal([tuple(torch.cat(parts) for parts in zip(a, b, strict=True)) for a, b in zip(*ranks, strict=True)], whole)


# --- mixup and cutmix


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_pixels_and_targets_belong_together(root: Path, kind: str) -> None:
    """Flat images of one value a class: what is mixed can be read off the pixels."""
    found = dataset(root, mix={kind: 1.0})
    values = torch.tensor([0, 100, 250], dtype=torch.uint8)
    plain = found.plain

    def flat_images(keys: Any) -> Batch:
        batch = plain(keys)
        images = values[batch.labels][:, None, None, None].expand(-1, 3, 12, 12).contiguous()
        return replace(batch, images=images, values=batch.indices[:, None].float())

    found.plain = flat_images  # type: ignore[method-assign]
    batch = found.fetch([(3, index) for index in range(57)])
    assert batch.epochs.tolist() == [3] * 57
    assert batch.values is not None, "what is known of the first images"
    assert batch.values.flatten().tolist() == list(range(57))
    assert batch.targets is not None
    assert torch.allclose(batch.targets.sum(dim=1), torch.ones(57))
    assert (batch.targets.gather(1, batch.labels[:, None]) > 0).sum() >= 50
    assert ((batch.targets > 0).sum(dim=1) == 2).sum() > 10
    for image, target in zip(batch.images.float(), batch.targets, strict=True):
        assert image.mean() == pytest.approx(float((target * values).sum()), abs=0.51)
        levels = set(image.unique().tolist())
        assert len(levels) == 1 if kind == "mixup" else levels <= {0.0, 100.0, 250.0}


def test_probability_and_switch(root: Path) -> None:
    found = dataset(root, mix={"mixup": 1.0, "probability": 0.3})
    batch = found.fetch([(e, index) for e in range(10) for index in range(57)])
    plain = found.plain([(e, index) for e in range(10) for index in range(57)])
    changed = (batch.images != plain.images).flatten(1).any(dim=1).float().mean()
    assert 0.24 < changed < 0.36


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_soft_targets_agree_with_labels(loss: str) -> None:
    task = Classify(
        Config.model_validate({"loss": loss, "label_smoothing": 0.1, "class_weights": "balanced"}), Facts.plain("abc", [1, 2, 9])
    )
    logits, labels = torch.randn(8, 3), torch.arange(8) % 3
    hard = torch.nn.functional.one_hot(labels, 3).float()
    assert torch.allclose(task.criterion(logits, labels, hard), task.criterion(logits, labels), atol=1e-6)
    if loss == "cross_entropy":  # linear in the targets, as the papers have it
        soft = 0.3 * hard + 0.7 * hard.roll(1, 0)
        wanted = 0.3 * task.criterion(logits, labels) + 0.7 * task.criterion(logits, labels.roll(1))
        assert torch.allclose(task.criterion(logits, labels, soft), wanted, atol=1e-6)


# --- augmentation


@pytest.mark.parametrize("augment", [
    {"auto": "rand", "rand": {"ops": 3, "magnitude": 15}}, {"auto": "augmix", "augmix": {"severity": 5}}, {"auto": "three"},
    {"auto": "autoaugment", "policy": "cifar10"}, {"auto": "trivial"}, {"grey": 0.5}, {"blur": 0.5}, {"solarize": 0.5},
    {"erase": 0.5, "erase_fill": "noise"}, {"erase": 0.5, "erase_fill": "mean"},
])  # fmt: skip
def test_augmentation_is_a_function_of_the_sample(root: Path, augment: dict[str, Any]) -> None:
    found, plain = dataset(root, augment=augment), dataset(root)
    keys = [(epoch, index) for epoch in range(2) for index in range(20)]
    one, other = found.fetch(keys).images, found.fetch(keys[::-1]).images.flip(0)
    assert one.dtype == torch.uint8
    assert torch.equal(one, other)
    assert not torch.equal(one, plain.fetch(keys).images)


def test_erased_boxes_hold_the_mean() -> None:
    torch.manual_seed(0)
    images = [Erase(1.0, "mean", SPEC)(torch.zeros(3, 32, 32, dtype=torch.uint8)) for _ in range(50)]
    for image in images:
        inside = image[0] > 0
        assert 0.01 < inside.float().mean() < 0.36
        assert {tuple(pixel) for pixel in image[:, inside].T.tolist()} == {(102, 128, 153)}


# --- the table of a sweep


def test_folds_of_a_sweep_are_put_together() -> None:
    def row(fold: int, best: float | None, lr: float) -> Row:
        settings = {"data.val": f"fold:{fold}/3", "optimizer.lr": lr}
        return Row(0, "x", settings, "done", 1, best, {}, 1.0)

    rows = [row(1, 0.5, 0.1), row(2, 0.7, 0.1), row(3, None, 0.1), row(1, 0.9, 0.2), row(2, 0.9, 0.2), row(3, 0.6, 0.2)]
    assert over_folds(rows) == [
        "optimizer.lr 0.1: 0.6000 ± 0.1414 over 2 of 3 folds",
        "optimizer.lr 0.2: 0.8000 ± 0.1732 over 3 of 3 folds",
    ]
