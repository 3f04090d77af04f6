"""Losses of labels and of numbers: value by value as the papers' equations and torch's own say."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from trainer.config import UserError
from trainer.config.targets import Facts, Known, Target
from trainer.config.tasks import multilabel, regress
from trainer.losses.labels import LabelLoss, pos_weights
from trainer.losses.values import Kind, ValueLoss
from trainer.tasks import build_task
from trainer.tasks.multi import Part

GENERATOR = torch.Generator().manual_seed(3)
LOGITS = torch.randn(7, 4, generator=GENERATOR) * 3
TRUTH = (torch.rand(7, 4, generator=GENERATOR) < 0.4).float()
UNKNOWN = torch.rand(7, 4, generator=GENERATOR) < 0.3
UNKNOWN[2] = True
SOME = torch.where(UNKNOWN, math.nan, TRUTH)


def test_bce_is_torchs_with_its_weights() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    for given in (None, weights):
        wanted = functional.binary_cross_entropy_with_logits(LOGITS, TRUTH, reduction="none", pos_weight=given).mean(dim=1)
        torch.testing.assert_close(LabelLoss("bce", weights=given)(LOGITS, TRUTH), wanted)


def test_smoothing_moves_a_truth_by_half_of_it() -> None:
    soft = TRUTH * 0.8 + 0.1
    wanted = functional.binary_cross_entropy_with_logits(LOGITS, soft, reduction="none").mean(dim=1)
    torch.testing.assert_close(LabelLoss("bce", smoothing=0.2)(LOGITS, TRUTH), wanted)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_equation(gamma: float) -> None:
    found = LabelLoss("focal", gammas=(gamma, gamma))(LOGITS, TRUTH)
    for row, logits, truth in zip(found.tolist(), LOGITS.tolist(), TRUTH.tolist(), strict=True):
        parts = []
        for x, y in zip(logits, truth, strict=True):
            p = 1 / (1 + math.exp(-x))
            chosen = p if y else 1 - p
            parts.append(-((1 - chosen) ** gamma) * math.log(chosen))
        assert row == pytest.approx(sum(parts) / 4, rel=1e-5)


@pytest.mark.parametrize(("present", "absent", "clip"), [(0.0, 4.0, 0.05), (1.0, 2.0, 0.2), (1.0, 4.0, 0.0), (0.0, 0.0, 0.1)])
def test_asymmetric_is_its_equation(present: float, absent: float, clip: float) -> None:
    found = LabelLoss("asymmetric", gammas=(present, absent), clip=clip)(LOGITS, TRUTH)
    for row, logits, truth in zip(found.tolist(), LOGITS.tolist(), TRUTH.tolist(), strict=True):
        parts = []
        for x, y in zip(logits, truth, strict=True):
            p = 1 / (1 + math.exp(-x))
            shifted = max(p - clip, 0)
            parts.append(-((1 - p) ** present) * math.log(p) if y else -(shifted**absent) * math.log(1 - shifted))
        assert row == pytest.approx(sum(parts) / 4, rel=1e-5, abs=1e-7)


def test_the_paper_says_when_asymmetric_is_focal_and_bce() -> None:
    focal = LabelLoss("focal", gammas=(2.0, 2.0))(LOGITS, TRUTH)
    torch.testing.assert_close(LabelLoss("asymmetric", gammas=(2.0, 2.0))(LOGITS, TRUTH), focal)
    torch.testing.assert_close(LabelLoss("asymmetric")(LOGITS, TRUTH), LabelLoss("bce")(LOGITS, TRUTH))


@pytest.mark.parametrize(
    "loss",
    [
        LabelLoss("bce", 0.1),
        LabelLoss("focal", gammas=(0.5, 0.5)),
        LabelLoss("asymmetric", gammas=(0.5, 0.5), clip=0.05),
        ValueLoss("huber"),
    ],
)
def test_what_is_not_known_costs_nothing_and_pulls_at_nothing(loss: LabelLoss | ValueLoss) -> None:
    logits = LOGITS.clone().requires_grad_()
    found = loss(logits, SOME)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert found[2] == 0
    assert logits.grad[UNKNOWN].eq(0).all()
    assert logits.grad[~UNKNOWN].ne(0).all()
    each = torch.stack([loss(LOGITS[:, i : i + 1], SOME[:, i : i + 1]) for i in range(4)], dim=1)
    torch.testing.assert_close(found.detach(), each.mean(dim=1))


@pytest.mark.parametrize("kind", ["bce", "focal", "asymmetric"])
def test_extreme_logits_have_finite_slopes(kind: str) -> None:
    logits = torch.tensor([[90.0, -90.0, 0.0, 30.0], [90.0, -90.0, -3.0, -30.0]]).requires_grad_()
    truth = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    config = multilabel.Config.model_validate({"loss": kind, "gamma": 0.5, "gamma_present": 0.5, "gamma_absent": 0.5})
    task = build_task(config, Facts((Known(Target("t", "labels", tuple("abcd")), (1, 1, 1, 1), (2, 2, 2, 2)),)))
    nothing = torch.zeros(2)
    (losses,) = task.losses(logits, Part(nothing, nothing, nothing, truth)).values()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()


def test_balanced_presences_weigh_as_much_as_absences() -> None:
    weights = pos_weights("balanced", ["a", "b"], [2, 9], [10, 10])
    assert weights is not None
    assert weights.tolist() == pytest.approx([4, 1 / 9])
    assert pos_weights("none", ["a"], [1], [2]) is None
    named = pos_weights({"b": 2.5}, ["a", "b"], [1, 1], [2, 2])
    assert named is not None
    assert named.tolist() == [1, 2.5]
    with pytest.raises(UserError, match="no label 'bb'; did you mean 'b'"):
        pos_weights({"bb": 2.5}, ["aa", "b"], [1, 1], [2, 2])


@pytest.mark.parametrize("kind", ["mse", "l1", "huber", "smooth_l1"])
def test_losses_of_numbers_are_torchs_in_standardised_units(kind: Kind) -> None:
    truth = torch.tensor([[101.0, -3.0], [95.0, math.nan], [100.0, 7.0]])
    config = regress.Config(loss=kind, delta=0.5)
    known = [Known(Target(n, "values", (n,)), (), (3,), (mean,), (std,)) for n, mean, std in (("a", 100, 4), ("b", 1, 2))]
    task = build_task(config, Facts(tuple(known)))
    given = torch.tensor([[0.3, 1.0], [-2.0, 5.0], [0.1, 0.0]])
    (found,) = task.losses(given, Part(given, given, given, truth)).values()
    standard = (truth - torch.tensor([100.0, 1.0])) / torch.tensor([4.0, 2.0])
    own = {
        "mse": functional.mse_loss(given, standard, reduction="none"),
        "l1": functional.l1_loss(given, standard, reduction="none"),
        "huber": functional.huber_loss(given, standard, reduction="none", delta=0.5),
        "smooth_l1": functional.smooth_l1_loss(given, standard, reduction="none", beta=0.5),
    }[kind]
    torch.testing.assert_close(found, own.nan_to_num().mean(dim=1))
    plain = build_task(config.model_copy(update={"standardize": False}), Facts(tuple(known)))
    assert plain.scale is None
    told = task.predictions(torch.tensor([[0.5, -1.0]]), 1)[0]["values"]
    assert told == {"a": 102.0, "b": -1.0}
