"""Sources in the libraries' own formats: folders that the libraries saved, loaded with equal outputs and exported back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import nn

from tests.unit.folders import bare
from trainer.config import Run, UserError, load
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.export import export
from trainer.models import build_model, needs
from trainer.models.base import Built
from trainer.models.channels import channels_of
from trainer.models.class_tables import class_tables
from trainer.models.diffusers import load as load_generator
from trainer.rundir import RunDir
from trainer.spec import Output

CLASSES = ("ant", "bee", "cat", "dog", "elk")
FEWER = ("dog", "yak", "ant")


def built(source: str, classes: tuple[str, ...] = CLASSES, weights: str | None = None, **adapt: Any) -> Built:
    given: dict[str, Any] = {"source": source, "adapt": Adapt(**adapt)}
    return build_model(Model(**given | ({"weights": weights} if weights else {})), "auto", (Output("", classes),), 0)


def images(one: Built, count: int = 2) -> torch.Tensor:
    spec = one.spec
    return torch.randn(count, spec.in_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(0))


def timm_folder(folder: Path, name: str = "test_resnet", **args: Any) -> nn.Module:
    torch.manual_seed(1)
    network: nn.Module = timm.create_model(name, num_classes=5, **args).eval()
    extra = {"label_names": list(CLASSES)}
    timm.models.save_for_hf(network, str(folder), safe_serialization=True, model_config=extra)
    return network


def vit_folder(folder: Path, **more: Any) -> Any:
    torch.manual_seed(1)
    settings = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
        id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)},
    )  # fmt: skip
    network = transformers.ViTForImageClassification(settings).eval()
    network.save_pretrained(folder, **more)
    processor = {"do_resize": True, "size": {"height": 32, "width": 32}, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6],
                 "image_std": [0.1, 0.2, 0.3], "rescale_factor": 1 / 255, "resample": 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return network


def unet_folder(folder: Path) -> Any:
    torch.manual_seed(1)
    network = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_class_embeds=6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    network.eval().save_pretrained(folder)
    return network


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_timm_folder_gives_what_timm_gives(tmp_path: Path, name: str) -> None:
    library = timm_folder(tmp_path, name)
    one = built(f"timm:{tmp_path}")
    with torch.no_grad():
        torch.testing.assert_close(one.network.eval()(images(one)), library(images(one)), rtol=0, atol=0)
    facts: Any = library.pretrained_cfg
    assert (one.spec.mean, one.spec.std, one.spec.interpolation) == (facts["mean"], facts["std"], facts["interpolation"])
    assert one.spec.image_size == facts["input_size"][1]
    assert not one.fresh
    fewer = built(f"timm:{tmp_path}", FEWER)
    old, new = library.state_dict(), fewer.network.state_dict()
    head = fewer.head[0]
    torch.testing.assert_close(new[f"{head}.weight"][[0, 2]], old[f"{head}.weight"][[3, 0]], rtol=0, atol=0)
    assert not torch.equal(new[f"{head}.weight"][1], old[f"{head}.weight"][1])


def test_a_timm_network_at_another_size_is_what_timm_makes_of_it(tmp_path: Path) -> None:
    timm_folder(tmp_path, "test_vit")
    one = built(f"timm:{tmp_path}", image_size=96)
    library = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=96).eval()
    with torch.no_grad():
        torch.testing.assert_close(one.network.eval()(images(one)), library(images(one)), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["repvgg_a0", "tresnet_m", "fastvit_t8"])
def test_every_branch_of_a_stem_takes_one_channel_as_it_took_a_grey_image(tmp_path: Path, name: str) -> None:
    library = timm_folder(tmp_path, name).double()
    one = built(f"timm:{tmp_path}", in_channels=1, image_size=64)
    grey = images(one).double()
    with torch.no_grad():
        ours, theirs = one.network.double().eval()(grey), library(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs)


def test_both_heads_of_a_distilled_network_change(tmp_path: Path) -> None:
    library = timm_folder(tmp_path, "deit_tiny_distilled_patch16_224", depth=1)
    one = built(f"timm:{tmp_path}", FEWER)
    assert sorted(one.head) == ["head", "head_dist"]
    for head in one.head:
        ours, theirs = (network.state_dict()[f"{head}.weight"] for network in (one.network, library))
        torch.testing.assert_close(ours[[0, 2]], theirs[[3, 0]], rtol=0, atol=0)


def test_a_transformers_folder_gives_what_transformers_gives(tmp_path: Path) -> None:
    library = vit_folder(tmp_path)
    one = built(f"transformers:{tmp_path}")
    with torch.no_grad():
        torch.testing.assert_close(one.network.eval()(images(one)), library(images(one)).logits, rtol=0, atol=0)
    assert (one.spec.mean, one.spec.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert (one.spec.image_size, one.spec.interpolation) == (32, "bicubic")
    wider = built(f"transformers:{tmp_path}", FEWER, in_channels=4, image_size=48)
    old, new = library.state_dict(), wider.network.state_dict()
    stem = "vit.embeddings.patch_embeddings.projection.weight"
    torch.testing.assert_close(new[stem], channels_of(old[stem], 4), rtol=0, atol=0)
    torch.testing.assert_close(new["classifier.weight"][[0, 2]], old["classifier.weight"][[3, 0]], rtol=0, atol=0)
    assert new["vit.embeddings.position_embeddings"].shape == (1, 37, 16)


def test_shards_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    library = vit_folder(tmp_path, max_shard_size="8KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    one = built(f"transformers:{tmp_path}")
    with torch.no_grad():
        torch.testing.assert_close(one.network.eval()(images(one)), library(images(one)).logits, rtol=0, atol=0)
    assert {need.file.name for need in needs(Model(source=f"transformers:{tmp_path}"))} >= {path.name for path in shards}
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"1 of {len(shards)} weight files are missing \({shards[1].name}\)"):
        built(f"transformers:{tmp_path}")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="partial"):
        built(f"transformers:{tmp_path}")


def test_partial_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    vit_folder(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, said = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        built(f"transformers:{tmp_path}")
    weights.unlink()
    with pytest.raises(UserError, match="has no weights"):
        built(f"transformers:{tmp_path}")
    torch.save({"classifier.weight": Path("evil")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="nothing in it was run"):
        built(f"transformers:{tmp_path}")
    config.write_text(json.dumps({**said, "auto_map": {"AutoModelForImageClassification": "own.Net"}}))
    with pytest.raises(UserError, match=r"asks to run code of its author's \(auto_map: own\.Net\)"):
        built(f"transformers:{tmp_path}")
    config.write_text(json.dumps({**said, "model_type": "bert"}))
    with pytest.raises(UserError, match="a bert is no image classifier"):
        built(f"transformers:{tmp_path}")
    config.write_text("{")
    with pytest.raises(UserError, match="not a readable JSON file"):
        built(f"transformers:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "weights", "told"),
    [
        ("timm:resnet1", "none", "no architecture 'resnet1'; did you mean"),
        ("timm:resnet18.a9", "none", "has no weights 'a9'; known: a1_in1k"),
        ("timm:resnet18", "a9_in1k", "has no weights 'a9_in1k'; did you mean"),
        ("timm:owner/name", "DEFAULT", r"not in the hub's cache here; run `graft fetch RUN`"),
        ("timm:resnet18", "DEFAULT", r"timm/resnet18\.a1_in1k is not in the hub's cache here; run `graft fetch RUN`"),
        (
            "transformers:owner/name",
            "DEFAULT",
            r"config\.json of owner/name is not in the hub's cache here; run `graft fetch RUN`",
        ),
        ("transformers:./nowhere", "DEFAULT", "no such folder"),
        ("run:nowhere", "best", "no such run"),
    ],
)
def test_what_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, weights: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=told):
        built(source, weights=weights)


def test_a_repository_in_the_hubs_cache_is_read_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--owner--name"
    library = vit_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("constants", "file_download.constants"):
        monkeypatch.setattr(f"huggingface_hub.{name}.HF_HUB_CACHE", str(tmp_path / "hub"))
    one = built("transformers:owner/name")
    with torch.no_grad():
        torch.testing.assert_close(one.network.eval()(images(one)), library(images(one)).logits, rtol=0, atol=0)


def test_the_trunk_of_a_generator_gives_its_own_features(tmp_path: Path) -> None:
    library = unet_folder(tmp_path / "unet")
    one = built(f"diffusers:{tmp_path}/unet")
    found: list[torch.Tensor] = []
    library.mid_block.register_forward_hook(lambda module, given, output: found.append(output))
    times = torch.zeros(2)
    library.class_embedding = None
    with torch.no_grad():
        library(images(one), times)
        features = one.network.eval().features(images(one))  # type: ignore[operator]
    torch.testing.assert_close(features, found[0].mean((2, 3)))
    assert one.head == ("head",)
    assert one.fresh == ("head.weight", "head.bias")
    assert one.spec.mean == (0.5, 0.5, 0.5)


def test_a_pipeline_asks_for_a_part_and_conditional_parts_are_refused(tmp_path: Path) -> None:
    unet = unet_folder(tmp_path / "other")
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    assert built(f"diffusers:{tmp_path}/pipe#unet").head == ("head",)
    with pytest.raises(UserError, match="is a pipeline; write the part: #unet"):
        built(f"diffusers:{tmp_path}/pipe")
    with pytest.raises(UserError, match="has no part 'vae'"):
        built(f"diffusers:{tmp_path}/pipe#vae")
    blocks: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "norm_num_groups": 4}
    diffusers.DiTTransformer2DModel(in_channels=4, sample_size=8, num_embeds_ada_norm=10, **blocks).save_pretrained(
        tmp_path / "dit"
    )
    with pytest.raises(UserError, match="a DiTTransformer2DModel takes more than an image"):
        built(f"diffusers:{tmp_path}/dit")
    tables = class_tables(load_generator(f"{tmp_path}/dit"))
    assert [name.partition(".norm1")[0] for name in tables] == ["transformer_blocks.0", "transformer_blocks.1"]
    assert class_tables(load_generator(f"{tmp_path}/pipe#unet")) == ("class_embedding",)


def settings(root: Path, source: str, *overrides: str) -> Run:
    bare(root)
    return load(root / "tiny.yaml", [f"model.source={source}", "model.weights=DEFAULT", *overrides])


def exported(root: Path, source: str, **adapt: Any) -> tuple[Path, Built]:
    """A graft with a head that learnt, written out."""
    changes = [f"model.adapt.{key}={value}" for key, value in adapt.items()]
    run = settings(root, source, *changes)
    one = build_model(run.model, "auto", (Output("", FEWER),), 0)
    torch.manual_seed(2)
    nn.init.normal_(dict(one.network.named_parameters())[f"{one.head[0]}.weight"])
    facts: dict[str, Any] = {"summary": {}, "evaluation": {}}
    out = export(
        RunDir(root / "runs" / "tiny"),
        root / "export",
        network=one.network.eval(),
        spec=one.spec,
        outputs=(Output("", FEWER),),
        run=run,
        **facts,
    )
    return out, one


def test_a_timm_graft_goes_back_to_timm(tmp_path: Path) -> None:
    timm_folder(tmp_path / "saved", "test_vit")
    out, one = exported(tmp_path, f"timm:{tmp_path}/saved", in_channels=1, image_size=96)
    library = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(library(images(one)), one.network(images(one)), rtol=0, atol=0)
    facts: Any = library.pretrained_cfg
    assert facts["label_names"] == list(FEWER)
    assert (tuple(facts["input_size"]), tuple(facts["mean"])) == ((1, 96, 96), one.spec.mean)
    again = built(f"timm:{out}", FEWER, in_channels=1)
    with torch.no_grad():
        torch.testing.assert_close(again.network.eval()(images(one)), one.network(images(one)), rtol=0, atol=0)


def test_a_transformers_graft_goes_back_to_transformers(tmp_path: Path) -> None:
    vit_folder(tmp_path / "saved")
    out, one = exported(tmp_path, f"transformers:{tmp_path}/saved", image_size=48)
    library = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    with torch.no_grad():
        torch.testing.assert_close(library(images(one)).logits, one.network(images(one)), rtol=0, atol=0)
    assert library.config.id2label == dict(enumerate(FEWER))
    noise = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    prepared = transformers.AutoImageProcessor.from_pretrained(out)(Image.fromarray(noise.numpy()), return_tensors="pt")[
        "pixel_values"
    ]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (one.spec.mean, one.spec.std))
    torch.testing.assert_close(prepared[0], (noise.permute(2, 0, 1) / 255 - mean) / std, rtol=1e-4, atol=1e-4)
    Image.fromarray(noise.numpy()).save(tmp_path / "one.png")
    words = [sys.executable, str(out / "predict.py"), str(tmp_path / "one.png")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        best = one.network(prepared).argmax().item()
    assert done.stdout.split("\t")[1] == FEWER[int(best)]


def test_a_generators_graft_goes_back_to_diffusers(tmp_path: Path) -> None:
    unet_folder(tmp_path / "saved")
    out, one = exported(tmp_path, f"diffusers:{tmp_path}/saved")
    library = diffusers.UNet2DModel.from_pretrained(out)
    kept = library.state_dict()
    for name, value in one.network.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(kept[name], value, rtol=0, atol=0)
    source = diffusers.UNet2DModel.from_pretrained(tmp_path / "saved").state_dict()
    torch.testing.assert_close(kept["conv_out.weight"], source["conv_out.weight"], rtol=0, atol=0)
