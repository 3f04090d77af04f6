"""A gan by hand: the losses of both sides, the penalty, changes of images, what is frozen, rows by name, what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from trainer.config import Run, UserError
from trainer.config.load import load
from trainer.config.model import Model
from trainer.config.tasks.gan import Config
from trainer.generate.images import drawn
from trainer.models import build_model
from trainer.models.resnet_gan import ResnetCritic, ResnetGenerator
from trainer.spec import Pair
from trainer.strategies.blocks_of import blocks_of
from trainer.tasks.augment import augmented
from trainer.tasks.duel import SHARE, Duel
from trainer.tasks.gan import Drawn, truncated

FIDELITY = {"samples": 10, "features": {"source": "timm:resnet18", "weights": "DEFAULT"}}
NAMES = ("ant", "bee", "cat")


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


def test_the_penalty_is_the_squared_slope_at_real_images_every_few_steps() -> None:
    """Against a slope by differences; on the steps between it is not there, and on its own it counts for those as well."""
    found = []
    for samples in (0, 4, 8, 12):
        both, critic = duel(r1={"weight": 0.5, "every": 3})
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
        above, below = (critic(image + sign * by.view(1, 1, 8, 8), batch.labels[1:2]) for sign in (1, -1))
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
    assert all(not torch.equal(one, other) for one, other in zip(found, images, strict=True) if name != "translation")
    assert torch.equal(torch.cat([change(images[:5], name, 1.0), found[5:]]), found)
    assert not torch.equal(change(images, name, 1.0, epoch=1), found)
    some = change(images, name, 0.5)
    changed = torch.tensor([torch.equal(one, other) for one, other in zip(some, found, strict=True)])
    assert bool(changed.any())
    assert torch.equal(some[~changed], images[~changed])
    assert torch.autograd.gradcheck(lambda x: change(x, name, 1.0), images[:2, :, :5, :5].double().requires_grad_())


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


def model(source: str, classes: tuple[str, ...], **sections: Any) -> Any:
    adapt = {"in_channels": 1, "image_size": 8, **sections.pop("adapt", {})}
    return build_model(Model.model_validate({"source": source, "adapt": adapt, **sections}), "auto", Pair(classes), 3)


def exported(folder: Path, critic: nn.Module, generator: nn.Module, source: str = "gan:resnet") -> Path:
    folder.mkdir()
    save_file(generator.state_dict(), folder / "generator.safetensors")
    save_file(critic.state_dict(), folder / "critic.safetensors")
    (folder / "config.json").write_text(
        f'{{"task": "gan", "source": "{source}", "args": {{"width": 8, "latent": 8}}, "classes": ["ant", "bee", "cat"], '
        '"in_channels": 1, "image_size": 8}'
    )
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    return exported(tmp_path / "old", ResnetCritic(1, 8, 3, width=8), ResnetGenerator(1, 8, 3, latent=8, width=8))


def test_rows_of_both_tables_follow_the_names_of_classes(old: Path) -> None:
    before, after = model(f"gan:{old}", NAMES), model(f"gan:{old}", ("yak", "cat"), adapt={"new_rows": "mean"})
    for part in ("network", "critic"):
        one, other = (getattr(built, part).state_dict() for built in (before, after))
        table = one.pop("class_embedding.weight")
        assert torch.allclose(other.pop("class_embedding.weight"), torch.stack([table.mean(dim=0), table[2]]))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    latents, labels = torch.randn(2, 8), torch.tensor([1, 1])
    made = after.network(latents, labels)
    assert torch.equal(made, before.network(latents, labels + 1)), "cat is what it was"
    assert torch.equal(after.critic(made, labels), before.critic(made, labels + 1))
    assert after.head == ("to_image", "class_embedding")
    assert "critic.class_embedding.weight: 1 of 2 classes kept" in " ".join(after.report.lines())
    renamed = model(f"gan:{old}", ("yak", "fly"), adapt={"head": "shared", "rename": {"fly": "bee"}})
    table = before.network.get_parameter("class_embedding.weight")
    assert torch.equal(renamed.network.get_parameter("class_embedding.weight")[1], table[1])
    colour = model(f"gan:{old}", NAMES, adapt={"in_channels": 3})
    repeated = colour.network(latents, labels)
    assert torch.allclose(repeated, before.network(latents, labels).expand(-1, 3, -1, -1), atol=1e-6)
    assert torch.allclose(colour.critic(repeated, labels), before.critic(repeated[:, :1], labels), atol=1e-5)


def test_new_rows_are_not_the_old_ones_drawn_again(tmp_path: Path) -> None:
    """By the same seed, as two runs have it that say nothing of seeds."""
    first = model("gan:resnet", NAMES, args={"width": 8, "latent": 8})
    folder = exported(tmp_path / "first", first.critic, first.network)
    after = model(f"gan:{folder}", ("yak", "fly", "eel"))
    rows = [built.get_parameter("class_embedding.weight").detach() for built in (first.network, after.network)]
    nearest = [torch.corrcoef(torch.stack([one, other]))[0, 1].abs() for one, other in zip(rows[0], rows[1], strict=True)]
    assert max(nearest) < 0.9
    assert after.fresh == ("class_embedding.weight",)


def test_what_is_made_of_a_latent_depends_on_no_other_one() -> None:
    generator = ResnetGenerator(2, 28, 0, latent=8, width=8)
    latents = torch.randn(3, 8)
    assert torch.allclose(generator(latents)[1:2], generator(latents[1:2]), atol=1e-6)
    assert generator(latents).shape == (3, 2, 28, 28)
    critic = ResnetCritic(2, 28, 0, width=8)
    assert critic(generator(latents)).shape == (3,)
    assert [block.name for block in blocks_of(critic, ("judge",))] == ["from_image", "blocks.0", "blocks.1", "blocks.2"]


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


OWN = """
from torch import nn
class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.latent = 4
        self.class_embedding = nn.Embedding(9, 4)
        self.last = nn.Linear(4, 64)
    def forward(self, latents, classes):
        return self.last(latents + self.class_embedding(classes)).tanh().view(-1, 1, 8, 8)
class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.class_embedding = nn.Embedding(9, 64)
        self.last = nn.Linear(64, 3)
    def forward(self, images, classes):
        return self.last(images.flatten(1) + self.class_embedding(classes))
def pair():
    return Generator(), Critic()
def one():
    return Generator()
def turned():
    return Critic(), Generator()
"""


def test_a_pair_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OWN)
    built = model(f"python:{tmp_path}/net.py:pair", NAMES)
    assert built.network.get_submodule("class_embedding").num_embeddings == 3
    folder = exported(tmp_path / "own", built.critic, built.network, f"python:{tmp_path}/net.py:pair")
    again = model(f"python:{tmp_path}/net.py:pair", ("cat", "dog"), weights=str(folder))
    for part in ("network", "critic"):
        one, other = (getattr(network, part).get_parameter("class_embedding.weight") for network in (built, again))
        assert torch.equal(other[0], one[2])
    for name, message in (
        ("one", "takes a generator and a critic, two modules; it gave Generator"),
        ("turned", "its generator has no whole number `latent`"),
    ):
        with pytest.raises(UserError, match=message):
            model(f"python:{tmp_path}/net.py:{name}", NAMES)
    with pytest.raises(UserError, match=r"makes images of shape \[1, 8, 8\], and the task is about \[1, 16, 16\]"):
        model(f"python:{tmp_path}/net.py:pair", NAMES, adapt={"image_size": 16})
    with pytest.raises(UserError, match=r"is of python:.*; write model.source: python:path.py:factory, with model.weights"):
        model(f"gan:{folder}", NAMES)


def test_what_does_not_fit_is_refused_with_what_does(old: Path, tmp_path: Path) -> None:
    for sections, message in (
        ({"adapt": {"image_size": 50}}, r"image_size is 50, and gan:resnet makes 4 to 7 pixels .* write 48 or 56"),
        ({"args": {"width": 12}}, "args.width is 12; write a multiple of 8"),
        ({"args": {"wide": 8}}, "args.wide is no argument of gan:resnet; known: latent, width"),
        ({"weights": str(tmp_path)}, "is no export of a gan"),
    ):
        with pytest.raises(UserError, match=message):
            model("gan:resnet", NAMES, **sections)
    with pytest.raises(UserError, match=r"makes images of 8 pixels, and model\.adapt\.image_size is 16"):
        model(f"gan:{old}", NAMES, adapt={"image_size": 16})
    with pytest.raises(UserError, match="task gan takes a generator with its critic; write gan:resnet"):
        model("torchvision:resnet18", NAMES)


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
    with pytest.raises(ValidationError, match=message):
        Run.model_validate(run | changes)


def test_the_folder_of_an_export_is_found_from_anywhere(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the new pair stays what it is, whatever lies beside it."""
    monkeypatch.chdir(old.parent)
    (old.parent / "resnet").mkdir()
    for source, found in (("gan:old", f"gan:{old}"), ("gan:resnet", "gan:resnet")):
        lines = [
            "name: r", "strategy: {kind: full}", "optimizer: {kind: adam, lr: 1e-3}", f"model: {{source: '{source}'}}",
            "task: {kind: gan, fidelity: {samples: 10}}", "data: {train: 'folder:x', val: 'folder:y'}",
        ]  # fmt: skip
        (old.parent / "run.yaml").write_text("\n".join(lines))
        run = load(old.parent / "run.yaml")
        assert (run.model.source, run.model.weights) == (found, "none" if source == "gan:resnet" else "DEFAULT")
        assert run.checkpoint.best == "val/fid"
