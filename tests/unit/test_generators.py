"""Networks that generate: built, adapted to classes, channels and sizes, and refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from trainer import strategies
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.config.strategies import head
from trainer.models import Built, build_model
from trainer.spec import Generator

UNET: dict[str, Any] = {
    "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip
DIT = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "norm_num_groups": 1, "patch_size": 2}
OLD = ("0", "1", "2", "3", "4")


def unet(folder: Path, classes: int | None = None, channels: int = 1, **more: Any) -> str:
    """A UNet with weights of its own, as diffusers saves one."""
    torch.manual_seed(1)
    made = diffusers.UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, num_class_embeds=classes, **{**UNET, **more}
    )  # fmt: skip
    made.save_pretrained(folder)
    return f"diffusers:{folder}"


def pipeline(folder: Path, classes: int | None = None, **scheduler: Any) -> str:
    torch.manual_seed(1)
    made = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=classes, **UNET)
    diffusers.DDPMPipeline(made, diffusers.DDPMScheduler(**scheduler)).save_pretrained(folder)
    return f"diffusers:{folder}"


def named(folder: Path, classes: tuple[str, ...], *, dropped: bool) -> None:
    """The names of its classes, as an export of graft's says them."""
    (folder / "graft.json").write_text(json.dumps({"classes": classes, "dropped": dropped}))


def build(source: str, classes: tuple[str, ...] = (), *, dropped: bool = False, load: bool = True, **more: Any) -> Built:
    weights = more.pop("weights", None)
    settings: dict[str, Any] = {"source": source, "args": more.pop("args", {})} | (
        {} if weights is None else {"weights": weights}
    )
    vae = more.pop("vae", None)
    adapt = Adapt(**{"in_channels": 1, **more})
    return build_model(Model(**settings, adapt=adapt), "auto", Generator(classes, dropped, vae), 0, load_weights=load)


def part(built: Built, name: str) -> Any:
    return built.network.get_submodule(name)


def called(built: Built, classes: list[int] | None = None) -> torch.Tensor:
    assert built.beside is not None
    count, (channels, size) = 2, (built.beside.channels, built.beside.size)
    images = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))
    told = {} if classes is None else {"classes": torch.tensor(classes)}
    with torch.no_grad():
        return built.beside.call(built.network.eval(), images, torch.tensor([3, 700]), told)


def test_a_saved_unet_is_the_library_s_own(tmp_path: Path) -> None:
    built = build(unet(tmp_path))
    plain = diffusers.UNet2DModel.from_pretrained(tmp_path)
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(called(built), plain(images, torch.tensor([3, 700])).sample)
    assert built.spec.image_size == 8
    assert built.spec.mean == (0.5,)
    assert not built.fresh
    assert built.head == ("conv_out", "conv_norm_out")


def test_the_rows_of_a_class_table_are_kept_by_name(tmp_path: Path) -> None:
    source = unet(tmp_path, 6)
    named(tmp_path, OLD, dropped=True)
    old = diffusers.UNet2DModel.from_pretrained(tmp_path).class_embedding.weight.detach()
    new = build(source, ("3", "7", "0"), dropped=True)
    table = part(new, "class_embedding").weight.detach()
    assert table.shape[0] == 4
    assert torch.equal(table[0], old[3])
    assert torch.equal(table[2], old[0])
    assert torch.equal(table[3], old[5]), "the row for no class stays one"
    assert not any(torch.equal(table[1], row) for row in old)
    assert "2 of 3 classes kept" in "".join(new.report.adapted)
    assert "class_embedding" in new.head
    like = build(source, ("3", "7", "0"), dropped=True, like={"7": "1"})
    assert torch.equal(part(like, "class_embedding").weight.detach()[1], old[1])
    zero = build(source, ("3", "7", "0"), dropped=False, new_rows="zero")
    assert not part(zero, "class_embedding").weight.detach()[1].any()
    with pytest.raises(UserError, match="no class 'five'"):
        build(source, ("3", "7"), rename={"7": "five"})


def test_a_network_that_knew_no_classes_is_told_of_them(tmp_path: Path) -> None:
    """The new table is so small that the network does at first nearly what it did."""
    plain = build(unet(tmp_path))
    told = build(f"diffusers:{tmp_path}", OLD, dropped=True)
    assert told.fresh == ("class_embedding.weight",)
    assert torch.allclose(called(told, [0, 5]), called(plain), atol=0.05)
    groups = strategies.apply(head.Config(), told.network, told.head, told.fresh, lambda amount: 0)
    learns = {name.rpartition(".")[0] for group in groups for name, _ in group.parameters}
    assert learns == {"class_embedding", "conv_norm_out", "conv_out"}
    back = build(f"diffusers:{tmp_path}")
    assert torch.equal(called(back), called(plain))


def test_channels_in_and_out_by_the_rules(tmp_path: Path) -> None:
    source = unet(tmp_path, channels=3)
    old = diffusers.UNet2DModel.from_pretrained(tmp_path)
    grey = build(source)
    assert torch.allclose(part(grey, "conv_in").weight, old.conv_in.weight.sum(1, keepdim=True))
    assert torch.allclose(part(grey, "conv_out").weight, old.conv_out.weight.mean(0, keepdim=True))
    assert torch.allclose(part(grey, "conv_out").bias, old.conv_out.bias.mean())
    four = build(source, in_channels=4, channels="zero")
    assert torch.equal(part(four, "conv_in").weight[:, :3], old.conv_in.weight)
    assert not part(four, "conv_in").weight[:, 3].any()
    assert torch.equal(part(four, "conv_out").weight[:3], old.conv_out.weight)
    assert not part(four, "conv_out").weight[3].any()
    names: dict[str, Any] = {"channels": "map", "channel_names": ["blue", "infra"], "channel_map": {"infra": "red"}}
    mapped = build(source, in_channels=2, **names)
    assert torch.equal(part(mapped, "conv_out").weight, old.conv_out.weight[[2, 0]])
    assert "conv_in" in mapped.head, "a new input learns with the head"
    same = build(source, in_channels=3)
    assert "conv_in" not in same.head


def test_a_transformer_s_tables_and_patches(tmp_path: Path) -> None:
    torch.manual_seed(1)
    diffusers.DiTTransformer2DModel(
        in_channels=1, out_channels=2, sample_size=8, num_embeds_ada_norm=5, **DIT
    ).save_pretrained(tmp_path)  # fmt: skip
    named(tmp_path, OLD, dropped=True)
    old = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path)
    built = build(f"diffusers:{tmp_path}", ("4", "9"), image_size=16)
    tables: list[Any] = [m for n, m in built.network.named_modules() if n.endswith("embedding_table")]
    assert len(tables) == 2
    first: Any = old.transformer_blocks[1].norm1.emb.class_embedder.embedding_table
    assert torch.equal(tables[1].weight[0], first.weight[4])
    assert torch.equal(tables[1].weight[2], first.weight[5])
    assert called(built, [0, 2]).shape == (2, 2, 16, 16)
    three = build(f"diffusers:{tmp_path}", ("4", "9"), in_channels=3)
    rows = part(three, "proj_out_2").weight.reshape(4, 2, 3, -1)
    for channel in range(3):
        assert torch.equal(rows[:, :, channel], old.proj_out_2.weight.reshape(4, 2, -1))
    built.network.train()  # its own dropping of classes, drawn from the training's generator, is off
    assert torch.equal(called(built, [0, 1]), called(built, [0, 1]))
    assert called(build(f"diffusers:{tmp_path}"), None).shape == (2, 2, 8, 8)


def test_weights_that_name_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = unet(tmp_path, 6)
    kept = build(source, ("a", "b", "c", "d", "e"), dropped=True)
    assert "does not name its 5 classes" in caplog.text
    assert not kept.fresh
    new = build(source, ("a", "b", "c"), dropped=True)
    assert new.fresh == ("class_embedding.weight",)
    with pytest.raises(UserError, match=r"class table of .* has 6 classes and the task has 3"):
        build(source, ("a", "b", "c"), head="keep")


def test_a_unet_from_scratch(tmp_path: Path) -> None:
    built = build("diffusers:UNet2DModel", OLD, dropped=True, image_size=8, args=UNET)
    assert called(built, [0, 5]).shape == (2, 1, 8, 8)
    assert part(built, "class_embedding").weight.shape[0] == 6
    names = [name for name, _ in built.network.named_children()]
    assert names.index("mid_block") < names.index("up_blocks") < names.index("conv_out"), "blocks in the order of their calls"
    with pytest.raises(
        UserError, match=r"model\.args\.block_channels: diffusers' UNet2DModel has no such argument.*block_out_channels"
    ):
        build("diffusers:UNet2DModel", image_size=8, args={"block_channels": [8]})
    with pytest.raises(UserError, match=r"model\.args\.sample_size follows from"):
        build("diffusers:UNet2DModel", image_size=8, args={"sample_size": 8})
    with pytest.raises(UserError, match=r"does not take model\.args"):
        build("diffusers:UNet2DModel", image_size=8, args={**UNET, "layers_per_block": [1, 1, 1]})
    with pytest.raises(UserError, match="image_size is missing"):
        build("diffusers:UNet2DModel", args=UNET)
    with pytest.raises(UserError, match="has none of its own; write none, or a file"):
        build("diffusers:UNet2DModel", args=UNET, image_size=8, weights="DEFAULT")


def test_sizes_that_it_cannot_make(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not generate 9 x 9 of 1 channels .*; the nearest sizes that it does are 8 and 10"):
        build(unet(tmp_path), image_size=9)


def test_the_part_of_a_pipeline_that_generates(tmp_path: Path) -> None:
    built = build(pipeline(tmp_path / "pipe", prediction_type="v_prediction"))
    assert built.beside is not None
    assert built.beside.schedule is not None
    assert built.beside.schedule["prediction_type"] == "v_prediction"
    scratch = build(f"diffusers:{tmp_path / 'pipe'}", weights="none")
    assert scratch.beside is not None
    assert scratch.beside.schedule is None, "what is not trained has no schedule to keep to"
    assert not torch.equal(called(built), called(scratch))


def test_what_makes_no_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torchvision: has networks that see images, and none that makes them"):
        build("torchvision:resnet18")
    with pytest.raises(UserError, match="unknown source 'difusers'"):
        build("difusers:x")
    diffusers.AutoencoderKL(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), norm_num_groups=4
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(UserError, match="a AutoencoderKL is no generator that is known here"):
        build(f"diffusers:{tmp_path}", in_channels=3)
    with pytest.raises(UserError, match="head_module names the output layer of a classifier"):
        build(unet(tmp_path / "unet"), head_module="conv_out")


class Own(nn.Module):
    """A generator of a user's own, which no library describes."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, channels, 3, padding=1)
        self.known = nn.Embedding(classes, 8) if classes else None

    def forward(self, images: torch.Tensor, times: torch.Tensor, classes: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        hidden = self.first(images) + times.float()[:, None, None, None] / 1000
        if self.known is not None:
            hidden = hidden + self.known(classes)[:, :, None, None]
        return (self.last(torch.relu(hidden)),)


def own(classes: int = 5, channels: int = 1) -> nn.Module:
    torch.manual_seed(5)
    return Own(classes, channels)


HERE = f"python:{Path(__file__).resolve()}:own"


def test_a_generator_of_one_s_own(tmp_path: Path) -> None:
    built = build(HERE, OLD, image_size=8)
    assert called(built, [0, 4]).shape == (2, 1, 8, 8)
    assert built.head == ("last", "known")
    more = build(HERE, (*OLD, "5"), dropped=True, image_size=8, in_channels=3)
    rows, old = part(more, "known").weight, part(built, "known").weight
    assert rows.shape[0] == 7
    assert torch.equal(rows[:5], old)
    assert called(more, [0, 6]).shape == (2, 3, 8, 8)
    assert torch.equal(part(more, "last").bias, part(built, "last").bias.expand(3))
    assert called(build(HERE, image_size=8, args={"classes": 0})).shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match=r"no torch\.nn\.Embedding of it"):
        build(f"python:{Path(__file__).resolve()}:blind", OLD, image_size=8)
    with pytest.raises(UserError, match=r"is called with \(images, times, classes\), and this one fails"):
        build(f"python:{Path(__file__).resolve()}:deaf", OLD, image_size=8)


class Blind(Own):
    def forward(self, images: torch.Tensor, times: torch.Tensor, classes: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        return (self.last(self.first(images)),)


def blind() -> nn.Module:
    return Blind(5, 1)


class Deaf(Own):
    def forward(self, images: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor]:  # type: ignore[override]
        return (self.last(self.first(images)),)


def deaf() -> nn.Module:
    return Deaf(5, 1)


VAE: dict[str, Any] = {
    "in_channels": 1, "out_channels": 1, "block_out_channels": (4, 8), "latent_channels": 2, "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"), "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "scaling_factor": 0.5, "shift_factor": 0.25,
}  # fmt: skip


def latent_pipeline(folder: Path, classes: int = 5, **autoencoder: Any) -> str:
    """A DiT on the latents of a small autoencoder, with both, as diffusers saves them."""
    torch.manual_seed(3)
    vae = diffusers.AutoencoderKL(**{**VAE, **autoencoder})
    dit = diffusers.DiTTransformer2DModel(in_channels=2, out_channels=4, sample_size=4, num_embeds_ada_norm=classes, **DIT)
    diffusers.DiTPipeline(dit, vae, diffusers.DDIMScheduler()).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(number): str(number) for number in range(classes)}  # as in the published pipelines
    (folder / "model_index.json").write_text(json.dumps(index))
    return f"diffusers:{folder}"


def test_latents_of_the_pipeline_s_autoencoder(tmp_path: Path) -> None:
    built = build(latent_pipeline(tmp_path), ("3", "9"), vae="pipeline")
    assert built.spec.image_size == 8
    assert "1 of 2 classes kept" in "".join(built.report.adapted), "id2label names the classes"
    assert built.beside is not None
    assert (built.beside.channels, built.beside.size, built.beside.image) == (2, 4, (1, 8))
    vae = built.beside.vae
    assert vae is not None
    plain: Any = diffusers.AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    images = torch.randn(2, 1, 8, 8).clamp(-1, 1)
    mean, deviation = vae.encode(images)
    with torch.no_grad():
        posterior = plain.encode(images).latent_dist
        torch.testing.assert_close(mean, (posterior.mean - 0.25) * 0.5)
        torch.testing.assert_close(deviation, posterior.std * 0.5)
        torch.testing.assert_close(vae.decode(mean), plain.decode(mean / 0.5 + 0.25).sample)
    other = build(f"diffusers:{tmp_path}", ("3", "9"), vae=f"diffusers:{tmp_path}", image_size=16)
    assert other.beside is not None
    assert other.beside.size == 8
    with pytest.raises(UserError, match=r"is 17, and .* takes multiples of 2; write 16 or 18"):
        build(f"diffusers:{tmp_path}", vae="pipeline", image_size=17)
    with pytest.raises(UserError, match=r"takes 1 channels and model\.adapt\.in_channels is 3"):
        build(f"diffusers:{tmp_path}", vae="pipeline", in_channels=3)
    with pytest.raises(UserError, match="there is no autoencoder beside the generator"):
        build(unet(tmp_path / "unet"), vae="pipeline")
    with pytest.raises(UserError, match=r"task\.vae: .*unet is a UNet2DModel; an autoencoder is one of AutoencoderKL"):
        build(f"diffusers:{tmp_path}", vae=f"diffusers:{tmp_path / 'unet'}")
