"""Losses of a classifier against formulas written out and against torchvision's."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from trainer.config import UserError
from trainer.config.targets import Facts
from trainer.config.tasks.classify import Config
from trainer.losses.classes import ClassLoss, Kind, class_weights
from trainer.tasks.classify import Classify

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 1.0, 4.0]])
LABELS = torch.tensor([0, 2, 1])
KINDS: list[Kind] = ["cross_entropy", "focal", "bce", "mse"]


def test_focal_is_cross_entropy_that_counts_easy_samples_less() -> None:
    shares = LOGITS.softmax(dim=1)[range(3), LABELS]
    found = ClassLoss("focal", 0.0, 2.0, None)(LOGITS, LABELS)
    assert torch.allclose(found, -((1 - shares) ** 2) * shares.log())
    assert torch.allclose(
        ClassLoss("focal", 0.0, 0.0, None)(LOGITS, LABELS), functional.cross_entropy(LOGITS, LABELS, reduction="none")
    )
    # with two classes and opposite logits the softmax is a sigmoid
    two = torch.tensor([[0.7, -0.7], [-0.2, 0.2]])
    own = ClassLoss("focal", 0.0, 1.5, None)(two, torch.tensor([0, 1]))
    theirs = sigmoid_focal_loss(2 * torch.tensor([0.7, 0.2]), torch.ones(2), alpha=-1, gamma=1.5)
    assert torch.allclose(own, theirs)


def test_bce_takes_every_class_alone() -> None:
    found = ClassLoss("bce", 0.3, 0.0, None)(LOGITS, LABELS)
    for row in range(3):
        expected = 0.0
        for column in range(3):
            target = 0.7 * (column == int(LABELS[row])) + 0.1
            share = 1 / (1 + math.exp(-float(LOGITS[row, column])))
            expected -= target * math.log(share) + (1 - target) * math.log(1 - share)
        assert float(found[row]) == pytest.approx(expected / 3, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_one_class_are_the_class_and_weights_scale_its_samples(kind: Kind) -> None:
    weights = torch.tensor([1.0, 2.0, 0.5])
    loss, weighted = ClassLoss(kind, 0.1, 2.0, None), ClassLoss(kind, 0.1, 2.0, weights)
    hard = loss(LOGITS, LABELS)
    assert torch.allclose(loss(LOGITS, LABELS, functional.one_hot(LABELS, 3).float()), hard, atol=1e-6)
    assert torch.allclose(weighted(LOGITS, LABELS), hard * weights[LABELS], atol=1e-6)
    mixed = torch.tensor([[0.6, 0.4, 0.0]] * 3)
    if kind in ("cross_entropy", "focal"):  # linear in the label
        parts = [loss(LOGITS, torch.full((3,), index)) for index in range(2)]
        assert torch.allclose(loss(LOGITS, LABELS, mixed), 0.6 * parts[0] + 0.4 * parts[1], atol=1e-6)


def test_class_weights_keep_their_mean_over_the_samples() -> None:
    counts = [10, 30, 60]
    balanced = class_weights("balanced", "abc", counts, 0.0)
    assert balanced is not None
    assert torch.allclose(balanced * torch.tensor(counts), torch.full((3,), 100 / 3))
    effective = class_weights("effective", "abc", counts, 0.9)
    assert effective is not None
    raw = [(1 - 0.9) / (1 - 0.9**n) for n in counts]
    mean = sum(w * n for w, n in zip(raw, counts, strict=True)) / 100
    assert effective.tolist() == pytest.approx([w / mean for w in raw], rel=1e-6)
    alike = class_weights("effective", "abc", counts, 0.0)
    assert alike is not None
    assert alike.tolist() == pytest.approx([1.0] * 3)
    named = class_weights({"c": 3.0}, "abc", counts, 0.0)
    assert named is not None
    assert named.tolist() == [1.0, 1.0, 3.0]


def test_a_weight_of_an_unknown_class_is_refused() -> None:
    with pytest.raises(UserError, match="the task has no class 'cta'; did you mean 'cat'"):
        Classify(Config(class_weights={"cta": 2.0}), Facts.plain(["cat", "dog"], [1, 1]))
