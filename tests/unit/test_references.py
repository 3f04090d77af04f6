"""Teachers of other libraries: asked what they would be asked there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.unit.test_models_libraries import CLASSES, timm_folder, vit_folder
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.model import Model
from trainer.losses.base import Reference
from trainer.references import block_names, fingerprint, start, teacher
from trainer.spec import InputSpec, Output

OWN = InputSpec(3, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CPU = torch.device("cpu")


def taught(source: str, classes: tuple[str, ...] = CLASSES, *, answers: bool = True, **adapt: Any) -> Reference:
    config = Model.model_validate({"source": source, "adapt": Adapt(**adapt).model_dump(exclude_defaults=True)})
    return teacher(config, "auto", (Output("", classes),), OWN, CPU, nullcontext, answers=answers)


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
