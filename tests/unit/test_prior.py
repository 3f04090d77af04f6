"""Prior preservation: what stands beside each sample, what the network is asked of both, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.painter import photographs
from trainer.config import UserError
from trainer.config.run import Data
from trainer.config.sources import open_source
from trainer.config.targets import Facts
from trainer.config.tasks.diffusion import Config
from trainer.data.companions import Accompanied
from trainer.data.dataset import ImageDataset
from trainer.priors import held_apart
from trainer.spec import Beside, InputSpec
from trainer.tasks.diffusion import Diffusion, build

SPEC = InputSpec(1, 8, (0.5,), (0.5,))


def digits(which: str) -> ImageDataset:
    return ImageDataset(open_source(f"digits:{which}/val"), Data(train="digits:0-9"), SPEC, train=True, seed=3)


def test_each_companion_comes_as_often_as_any_other() -> None:
    few, many = digits("3"), digits("5-9")
    for samples, companions in ((few, many), (many, few)):
        beside = Accompanied(samples, companions, seed=5)
        n = len(samples)
        keys = [beside.companion((epoch, index)) for epoch in range(7) for index in range(n)]
        assert len(set(keys)) == len(keys), "no noise comes twice"
        counts = Counter(index for _, index in keys)
        assert len(counts) == min(len(keys), len(companions))
        assert max(counts.values()) - min([*counts.values(), *([0] if len(counts) < len(companions) else [])]) <= 1
        again = beside.companion((2 + (1 << 32), 4))
        assert again == (beside.companion((2, 4))[0] + (1 << 32), beside.companion((2, 4))[1])
    assert keys != [Accompanied(many, few, seed=6).companion((e, i)) for e in range(7) for i in range(n)]
    whole = beside.fetch([(0, 1), (3, 2)])
    assert whole.prior is not None
    assert whole.prior.labels.tolist() == [few.listing.items[beside.companion(key)[1]].label for key in ((0, 1), (3, 2))]
    alone = few.fetch([beside.companion((3, 2))])
    assert torch.equal(whole.prior.images[1], alone.images[0])


class Asked(nn.Module):
    """Says the noised image itself, and keeps what it was asked."""

    def forward(self, images: torch.Tensor, times: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        self.images, self.classes = images, classes
        return images


def task(**prior: Any) -> Diffusion:
    config = Config.model_validate({"prior": {"classes": ["3"], **prior} if prior else None, "drop": 0.0})
    found = build(config, Facts.plain([str(n) for n in range(5, 10)], [1] * 5))
    call = lambda network, images, times, told: network(images, times, told["classes"])  # noqa: E731
    found.bind(Beside(call, 1, 8, (1, 8)), seed=0)
    return found


def test_both_losses_come_of_one_pass_with_noise_of_their_own() -> None:
    made = task(data="digits:3")
    assert made.generator.classes == ("5", "6", "7", "8", "9", "3")
    samples = Accompanied(digits("5-9"), digits("5-9"), seed=0)
    batch = samples.fetch([(0, 0), (0, 1), (1, 2)]).to(torch.device("cpu"), SPEC)
    assert batch.prior is not None
    batch.prior.epochs, batch.prior.indices, batch.prior.images = batch.epochs, batch.indices, batch.images
    network = Asked()
    losses = made.losses(made.run(network, batch), batch)
    assert list(losses) == ["task", "prior"]
    assert [len(loss) for loss in losses.values()] == [3, 3]
    assert len(network.images) == 6
    assert not torch.isclose(network.images[:3], network.images[3:]).flatten(1).all(dim=1).any(), "the same key, other noise"
    assert network.classes.tolist() == [*batch.labels.tolist(), *batch.prior.labels.tolist()]
    batch.prior = None
    plain = task()
    assert torch.equal(plain.losses(plain.run(Asked(), batch), batch)["task"], losses["task"]), "the data's loss is what it was"


@pytest.mark.parametrize(
    ("condition", "prior", "said"),
    [
        ("class", {}, "prior.classes is missing"),
        ("class", {"prompts": ["a"]}, "prior.prompts goes with condition: text"),
        ("none", {"classes": ["a"]}, "prior.classes goes with condition: class"),
        ("text", {}, "prior.prompts is missing"),
        ("text", {"prompts": ["a"], "data": "folder:x"}, "with prior.data nothing is"),
        ("none", {"data": "split:0.1"}, "which is no source"),
        ("text", {"prompts": ["a", "b"], "images": 1}, "prior.images is 1, fewer than the 2"),
        ("class", {"classes": ["a", "a"]}, "a name comes twice"),
    ],
)
def test_what_does_not_go_together_is_refused(condition: str, prior: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config.model_validate({"kind": "diffusion", "condition": condition, "prior": prior})


def test_what_is_measured_is_not_learnt(tmp_path: Path) -> None:
    photographs(tmp_path / "own", 3, seed=0)
    own = open_source(f"folder:{tmp_path / 'own'}", looks_at="nothing")
    held_apart(own, open_source("digits:0/val"))
    with pytest.raises(UserError, match=r"3 of its 3 images are also in data.val"):
        held_apart(own, open_source(f"folder:{tmp_path}", looks_at="nothing"))
