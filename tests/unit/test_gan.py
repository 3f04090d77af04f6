"""A gan by hand: the losses of both sides, the penalty, changes of images and their share, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from trainer.checkpoint import Tensors, fill
from trainer.config import Run, UserError
from trainer.config.tasks.gan import Config
from trainer.evaluate import measured
from trainer.finder import find
from trainer.generate.images import drawn
from trainer.models.resnet_gan import ResnetCritic
from trainer.rivals import Rival, restore
from trainer.tasks.augment import augmented
from trainer.tasks.base import Phase
from trainer.tasks.duel import SHARE, Duel
from trainer.tasks.gan import Drawn, Gan, truncated

FIDELITY = {"samples": 10, "features": {"source": "timm:resnet18", "weights": "DEFAULT"}}


@dataclass
class Few:
    """A batch as a duel looks at it."""

    images: torch.Tensor
    labels: torch.Tensor = field(default_factory=lambda: torch.tensor([0, 2, 1, 0]))
    indices: torch.Tensor = field(default_factory=lambda: torch.tensor([3, 1, 4, 15]))
    epochs: torch.Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.int64))
    values: torch.Tensor | None = None


def duel(loss: str = "hinge", **task: Any) -> tuple[Duel, ResnetCritic]:
    torch.manual_seed(0)
    critic = ResnetCritic(1, 8, 3, width=8)
    config = Config.model_validate({"kind": "gan", "loss": loss, "fidelity": FIDELITY, **task})
    return Duel(config, critic, 0, 4, lambda values: values), critic


def pictures(count: int = 4, size: int = 8, channels: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


@pytest.mark.parametrize(
    ("loss", "critics", "makers"),
    [
        ("hinge", lambda r, f: functional.relu(1 - r) + functional.relu(1 + f), lambda f: -f),
        ("lsgan", lambda r, f: (r - 1) ** 2 + f**2, lambda f: (f - 1) ** 2),
        (
            "non_saturating",
            lambda r, f: -functional.logsigmoid(r) - functional.logsigmoid(-f),
            lambda f: -functional.logsigmoid(f),
        ),
    ],
)
def test_each_side_has_its_loss_and_leaves_the_other_alone(loss: str, critics: Any, makers: Any) -> None:
    both, critic = duel(loss, r1={"weight": 0})
    batch, made = Few(pictures()), pictures().flip(0).requires_grad_()
    real, fake = critic(batch.images, batch.labels).detach(), critic(made, batch.labels).detach()
    own = both.deceive(made, batch)
    assert torch.allclose(own, makers(fake), atol=1e-6)
    own.sum().backward()  # type: ignore[no-untyped-call]
    assert made.grad is not None
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    before = made.grad.clone()
    loss_, of_real, of_made = both(critic, batch).unbind(dim=1)
    assert torch.allclose(loss_, critics(real, fake), atol=1e-6)
    assert torch.allclose(torch.stack([of_real, of_made]), torch.stack([real, fake]), atol=1e-6)
    loss_.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(made.grad, before), "the generator takes no gradient of the critic's loss"
    assert all(p.grad is not None for p in critic.parameters())


@pytest.mark.parametrize("changes", [[], ["color", "translation", "cutout"]])
def test_the_penalty_is_the_squared_slope_at_real_images_every_few_steps(changes: list[Any]) -> None:
    """Against a slope by differences; on the steps between it is not there, and on its own it counts for those as well."""
    found = []
    for samples in (0, 4, 8, 12):
        both, critic = duel(r1={"weight": 0.5, "every": 3}, augment={"changes": changes} if changes else None)
        critic.double()
        batch = Few(pictures().double())
        both.deceive(pictures().flip(0).double(), batch)
        both.stage(samples)
        found.append(both(critic, batch)[:, 0])
    plain = found[1]
    assert torch.equal(plain, found[2])
    assert torch.equal(found[0], found[3])
    image, step = batch.images[1:2], 1e-5
    slopes = torch.zeros(64, dtype=torch.float64)
    for place in range(64):
        by = torch.zeros(64, dtype=torch.float64)
        by[place] = step
        moved = [image + sign * by.view(1, 1, 8, 8) for sign in (1, -1)]
        key = batch.epochs[1:2], batch.indices[1:2]
        seen = [augmented(one, changes, torch.ones(1), 0, 200, *key) for one in moved]  # as the critic sees it
        above, below = (critic(one, batch.labels[1:2]) for one in seen)
        slopes[place] = ((above - below) / (2 * step)).item()
    assert float((found[0][1] - plain[1]).detach()) == pytest.approx(0.5 / 2 * 3 * float(slopes.square().sum()), rel=1e-3)
    found[3].sum().backward()  # type: ignore[no-untyped-call]
    weight = critic.from_image.weight
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


def change(images: torch.Tensor, name: Any, share: float, epoch: int = 0) -> torch.Tensor:
    count = len(images)
    return augmented(images, [name], torch.tensor([share]), 0, 100, torch.full((count,), epoch), torch.arange(count))


@pytest.mark.parametrize("name", ["color", "translation", "cutout"])
def test_changes_of_images(name: str) -> None:
    """None at a share of 0, of each image by its own key alone, and gradients go through, twice."""
    images = pictures(12, 9, 2)
    assert torch.equal(change(images, name, 0.0), images)
    found = change(images, name, 1.0)
    kept = [torch.equal(one, other) for one, other in zip(found, images, strict=True)]
    assert sum(kept) <= (4 if name == "translation" else 0), "of nine ways to move an image one leaves it"
    assert torch.equal(torch.cat([change(images[:5], name, 1.0), found[5:]]), found)
    assert not torch.equal(change(images, name, 1.0, epoch=1), found)
    some = change(images, name, 0.5)
    changed = torch.tensor([torch.equal(one, other) for one, other in zip(some, found, strict=True)])
    assert bool(changed.any())
    assert torch.equal(some[~changed], images[~changed])
    few = images[:2, :, :5, :5].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: change(x, name, 1.0), few)
    assert torch.autograd.gradgradcheck(lambda x: change(x, name, 1.0).square(), images[:1, :, :4, :4].double().requires_grad_())


def test_what_the_changes_do() -> None:
    images = torch.ones(64, 1, 8, 8)
    holes = (change(images, "cutout", 1.0) == 0).flatten(1).sum(dim=1)
    assert int(holes.max()) == 16, "half the side at most"
    assert int(holes.min()) < 9, "less at a border"
    dot = torch.zeros(64, 1, 8, 8)
    dot[:, :, 3, 4] = 1
    places = {tuple(place) for place in change(dot, "translation", 1.0).nonzero()[:, 2:].tolist()}
    assert places == {(3 + down, 4 + right) for down in (-1, 0, 1) for right in (-1, 0, 1)}, "an eighth of the side"
    grey = change(pictures(6, 8, 1).expand(-1, 3, -1, -1), "color", 1.0)
    assert torch.allclose(grey[:, 0], grey[:, 1], atol=1e-6), "grey stays grey"


def test_the_share_follows_the_signs_of_real_images() -> None:
    both, critic = duel(augment={"share": 0.0, "adaptive": {"every": 2, "images": 80, "target": 0.5}})
    batch = Few(pictures())
    with torch.no_grad():
        critic.judge.bias.fill_(100)
    shares = []
    for step in range(5):
        both.stage(4 * step)
        both.deceive(pictures(), batch)
        assert float(both(critic, batch)[0, 3].detach()) == float(critic.get_buffer(SHARE))
        both.settle(4 * step + 4, good=step != 2)
        shares.append(round(float(critic.get_buffer(SHARE)), 4))
    assert shares == [0.1, 0.1, 0.1, 0.1, 0.2], "every second step, and not where none was taken"
    with torch.no_grad():
        critic.judge.bias.fill_(-100)
    for step in (6, 8, 10):
        both.stage(4 * step)
        both.deceive(pictures(), batch)
        both(critic, batch)
        both.settle(4 * step + 4, good=True)
    assert float(critic.get_buffer(SHARE)) == 0
    assert SHARE in critic.state_dict()


def test_a_share_that_a_checkpoint_lacks_begins_anew_and_one_too_many_is_left_out(tmp_path: Path) -> None:
    adaptive: dict[str, Any] = {"augment": {"share": 0.25, "adaptive": {}}}
    engine: Any = SimpleNamespace(fill=lambda network, held: fill(network, held.whole()))
    for before, now, share in ((adaptive, {}, None), ({}, adaptive, 0.25), (adaptive, adaptive, 0.75)):
        (_, old), (both, critic) = duel(**before), duel(**now)
        with torch.no_grad():
            old.judge.bias.fill_(7)
            if before:
                old.get_buffer(SHARE).fill_(0.75)
        save_file(old.state_dict(), tmp_path / "critic.safetensors")
        held = {"critic.safetensors": Tensors([tmp_path / "critic.safetensors"])}
        restore((Rival(Phase("critic", critic, engine, both), engine),), held, {}, optimizers=False)
        assert critic.judge.bias.item() == 7
        assert (SHARE in critic.state_dict()) == (share is not None)
        assert share is None or float(both.share) == share


def test_an_evaluation_reads_no_images_for_what_is_made_alone() -> None:
    task = Gan(Config.model_validate({"kind": "gan", "fidelity": FIDELITY}), (), ())

    def batches() -> Iterator[Any]:
        raise AssertionError("read")
        yield

    measured(nn.Identity(), task.measure(3, torch.device("cpu")), batches(), lambda batch: batch)


def test_latents_are_truncated_in_their_order() -> None:
    """And of what `graft sample` can be told that is all that a gan knows."""
    assert drawn(Drawn(None), {"steps": None, "guidance": None}, 0.7) == Drawn(0.7)
    assert drawn(Drawn(0.5), {}, None) == Drawn(0.5)
    with pytest.raises(UserError, match="--guidance: a gan makes an image in one pass"):
        drawn(Drawn(None), {"steps": None, "guidance": 3.0}, 0.7)
    latents = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    found = truncated(latents, 0.7)
    assert float(found.abs().max()) <= 0.7
    assert torch.equal(found.argsort(), latents.argsort())
    assert float(found.std()) == pytest.approx(0.388, abs=0.01), "that of the truncated normal distribution"
    assert torch.allclose(truncated(latents, 30.0), latents, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"kind": "gan"}}, "fidelity"),
        ({"train": {"precision": "fp16"}}, "fp16 has no room for the squared gradients of task.r1; write bf16"),
        ({"train": {"compile": "whole"}}, "does not go with task.kind: gan"),
        ({"parallel": {"kind": "zero2"}}, "has not been tried with task gan"),
        ({"task": {"kind": "gan", "fidelity": FIDELITY, "augment": {"changes": ["color", "color"]}}}, "at most once"),
        ({"data": {"train": "folder:x"}}, "set data.val"),
        ({"data": {"train": "folder:x", "val": "folder:y", "cache": {"kind": "features"}}}, "nothing of them is kept"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    run = {
        "name": "r", "task": {"kind": "gan", "fidelity": FIDELITY}, "model": {"source": "gan:resnet"},
        "strategy": {"kind": "full"},
        "data": {"train": "folder:x", "val": "folder:y"}, "optimizer": {"kind": "adam", "lr": 1e-3},
    }  # fmt: skip
    assert Run.model_validate(run).checkpoint.best == "val/fd_resnet18"
    with pytest.raises(UserError, match="task gan trains networks against each other"):
        find(Run.model_validate(run), low=1e-5, high=1.0, steps=20)
    with pytest.raises(ValidationError, match=message):
        Run.model_validate(run | changes)
