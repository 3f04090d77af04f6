"""Calibration against figures worked out by hand and by scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import brier_score_loss

from trainer.tasks.calibration import brier, calibration_error, reliability


def test_the_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = torch.tensor([True, True, True, False, False, True])
    bins = reliability(confidence, right, bins=10)
    assert [(b.samples, round(b.confidence, 6), b.accuracy) for b in bins] == [(2, 0.55, 0.5), (4, 0.95, 0.75)]
    assert calibration_error(bins) == pytest.approx((2 * 0.05 + 4 * 0.2) / 6)


def test_borders_belong_to_the_bin_below_and_nothing_is_lost() -> None:
    confidence = torch.tensor([0.0, 0.125, 0.25, 1.0, 0.126])
    bins = reliability(confidence, torch.ones(5, dtype=torch.bool), bins=8)
    assert [b.samples for b in bins] == [2, 2, 1]
    assert calibration_error([]) == 0.0
    assert reliability(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) == []


def test_the_brier_score_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(50, 2, generator=generator).softmax(dim=1)
    labels = torch.randint(2, (50,), generator=generator)
    # of two classes scikit-learn counts one
    expected = 2 * brier_score_loss(labels.numpy(), shares[:, 1].numpy())
    assert float(brier(shares, labels).mean()) == pytest.approx(expected, abs=1e-6)
    assert brier(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).tolist() == [2.0]
