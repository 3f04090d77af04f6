"""The two networks of a gan: rows by name, a pair of one's own, what is refused, folders of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainer.config import UserError
from trainer.config.load import load
from trainer.config.model import Model
from trainer.models import build_model
from trainer.models.resnet_gan import ResnetCritic, ResnetGenerator
from trainer.spec import Pair
from trainer.strategies.blocks_of import blocks_of

NAMES = ("ant", "bee", "cat")


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
        ({"adapt": {"head_module": "judge"}}, "head_module names the output layer of a classifier"),
    ):
        with pytest.raises(UserError, match=message):
            model("gan:resnet", NAMES, **sections)
    with pytest.raises(UserError, match=r"makes images of 8 pixels, and model\.adapt\.image_size is 16"):
        model(f"gan:{old}", NAMES, adapt={"image_size": 16})
    with pytest.raises(UserError, match="task gan takes a generator with its critic; write gan:resnet"):
        model("torchvision:resnet18", NAMES)


def test_the_folder_of_an_export_is_found_from_anywhere(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the new pair stays what it is, whatever lies beside it."""
    monkeypatch.chdir(old.parent)
    (old.parent / "resnet").mkdir()
    gone = f"gan:{old.parent}/gone"  # a run that began with it goes on
    for source, found in (("gan:old", f"gan:{old}"), ("gan:resnet", "gan:resnet"), ("gan:gone", gone)):
        lines = [
            "name: r", "strategy: {kind: full}", "optimizer: {kind: adam, lr: 1e-3}", f"model: {{source: '{source}'}}",
            "task: {kind: gan, fidelity: {samples: 10}}", "data: {train: 'folder:x', val: 'folder:y'}",
        ]  # fmt: skip
        (old.parent / "run.yaml").write_text("\n".join(lines))
        run = load(old.parent / "run.yaml")
        assert (run.model.source, run.model.weights) == (found, "none" if source == "gan:resnet" else "DEFAULT")
        assert run.checkpoint.best == "val/fid"
