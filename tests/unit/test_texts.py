"""Generators that are told texts: the tokenizer and the encoder of a pipeline, what does not fit, and captions of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.unit.test_generators import VAE
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Data, Model
from trainer.config.sources import open_splits
from trainer.config.targets import Facts
from trainer.config.tasks.diffusion import Config
from trainer.export import pipeline
from trainer.models import Built, build_model
from trainer.spec import Generator
from trainer.tasks.diffusion import build as build_task

UNET: dict[str, Any] = {
    "sample_size": 4, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 8,
}  # fmt: skip
LENGTH = 12
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def tokenizer(folder: Path) -> Any:
    """One that knows letters and digits, each a token."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made: Any = transformers.CLIPTokenizer
    return made(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def encoder(width: int = 8, **more: Any) -> Any:
    words = 2 * len(LETTERS) + 2
    made: Any = transformers.CLIPTextModel
    return made(transformers.CLIPTextConfig(
        vocab_size=words, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1, **more,
    ))  # fmt: skip


def text_pipeline(folder: Path, *, width: int = 8, scheduler: dict[str, Any] | None = None, **unet: Any) -> str:
    """A pipeline like Stable Diffusion's, of a few thousand parameters, as diffusers saves it."""
    torch.manual_seed(4)
    network = diffusers.UNet2DConditionModel(**{**UNET, **unet})
    vae = diffusers.AutoencoderKL(**{**VAE, "shift_factor": None})
    settings: dict[str, Any] = {"clip_sample": False, "steps_offset": 1, "beta_schedule": "scaled_linear", **(scheduler or {})}
    made: Any = diffusers.StableDiffusionPipeline
    made(
        vae, encoder(width), tokenizer(folder / "tokenizer"), network, diffusers.DDIMScheduler(**settings), None, None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return f"diffusers:{folder}"


def build(source: str, *, text: bool = True, **more: Any) -> Built:
    config = Model(source=source, adapt=Adapt(**{"in_channels": 1, **more}))
    return build_model(config, "auto", Generator(("a", "b"), True, "pipeline", text), 0)


def rewrite(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_texts_are_those_of_the_pipeline(tmp_path: Path) -> None:
    built = build(text_pipeline(tmp_path))
    assert built.beside is not None
    words, cpu = built.beside.text, torch.device("cpu")
    assert words is not None
    texts = ["a dress", "", "a text of many more letters", "7", "hat"]
    found = words.encode(texts, cpu)["text"]
    plain: Any = diffusers.StableDiffusionPipeline
    pipe = plain.from_pretrained(tmp_path)
    expected, nothing = pipe.encode_prompt(texts, cpu, 1, True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[1], nothing[0])
    assert torch.equal(words.encode(texts[3:], cpu)["text"], found[3:]), "to the bit, whatever is encoded with it"
    assert words.too_long(texts) == [(texts[2], 24)]
    assert not built.fresh
    assert built.head == ("conv_out", "conv_norm_out")


def test_what_is_beside_a_generator_and_does_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = text_pipeline(tmp_path / "pipe")
    folder = tmp_path / "pipe"
    with pytest.raises(UserError, match=r"is told a text; write task\.condition: text"):
        build(source, text=False)
    with pytest.raises(UserError, match="there is no text encoder beside it; name the folder of its pipeline"):
        build_model(Model(source=f"diffusers:{folder / 'unet'}"), "auto", Generator(("a",), True, None, True), 0)
    assert not caplog.text
    config = Model(source=source, adapt=Adapt(in_channels=1, image_size=8))
    build_model(config, "auto", Generator(("a",), True, None, True), 0)
    assert "was trained on latents, and task.vae is none: it learns on pixels; write task.vae: pipeline" in caplog.text

    torch.manual_seed(0)
    diffusers.AutoencoderKL(**{**VAE, "latent_channels": 3}).save_pretrained(tmp_path / "vae")
    build_model(config, "auto", Generator(("a",), True, f"diffusers:{tmp_path / 'vae'}", True), 0)
    assert "has latents of 3 channels, and" in caplog.text
    assert "was trained on 2: its input and output are adapted" in caplog.text

    encoder(16).save_pretrained(folder / "text_encoder")
    with pytest.raises(UserError, match=r"is told texts of 8 numbers a token, and the text encoder beside it gives 16"):
        build(source)
    encoder(8).save_pretrained(folder / "text_encoder")
    built = build(source)
    assert built.beside is not None
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if "fc1" not in name}, weights)
    assert built.beside.text is not None
    with pytest.raises(UserError, match=r"its text_encoder have no '.*fc1\.(weight|bias)' of its shape: partial"):
        built.beside.text.encode(["a"], torch.device("cpu"))
    rewrite(folder / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    with pytest.raises(UserError, match="its text_encoder is a T5EncoderModel; a text goes through CLIPTextModel"):
        build(source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"addition_embed_type": "text"}, "addition_embed_type: text is told more than texts"),
        ({"cross_attention_dim": [8, 16]}, "is told several texts"),
        ({"_class_name": "HunyuanDiT2DModel"}, "a HunyuanDiT2DModel is no generator that is known here"),
    ],
)
def test_networks_that_are_told_more(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    source = text_pipeline(tmp_path)
    rewrite(tmp_path / "unet" / "config.json", **settings)
    with pytest.raises(UserError, match=message):
        build(source)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def captions(data: Data) -> tuple[list[str], list[tuple[str, str]]]:
    """The texts by number, and each image with its own."""
    splits = open_splits(data, 0, looks_at="captions")
    parts = [part for part in (splits.train, splits.val) if part is not None]
    assert all(part.classes == parts[0].classes for part in parts)
    return list(parts[0].classes), sorted((item.key, part.classes[item.label]) for part in parts for item in part.items)


def test_captions_of_a_file_of_a_table_and_of_folders(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("a.png", "b.png", "deep/c.png", "d.png"):
        image(root / name)
    said = {"a.png": "a red hat", "./b.png": "a dress", "deep/c.png": "a red hat", "d.png": "shoes"}
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in said.items()]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    expected = [("a.png", "a red hat"), ("b.png", "a dress"), ("d.png", "shoes"), ("deep/c.png", "a red hat")]
    texts, found = captions(Data(train=f"folder:{root}", val="split:0.5", min_per_class=1))
    assert found == expected
    assert sorted(texts) == ["a dress", "a red hat", "shoes"]

    (tmp_path / "table.csv").write_text("file,words\n" + "".join(f"photos/{key},{text}\n" for key, text in expected))
    _, found = captions(Data(train=f"csv:{tmp_path / 'table.csv'}?image=file&label=words", min_per_class=1))
    assert [text for _, text in found] == [text for _, text in expected]

    for name in ("hat/1.png", "hat/2.png", "a long dress/3.png"):
        image(tmp_path / "classes" / name)
    texts, found = captions(Data(train=f"folder:{tmp_path / 'classes'}", val=f"folder:{root}", min_per_class=1))
    assert texts[:2] == ["a long dress", "hat"], "those of the training samples come first"
    assert ("a long dress/3.png", "a long dress") in found
    assert ("d.png", "shoes") in found, "other texts than in training"

    for line, message in (
        ("{", "line 5: not JSON"),
        ('{"file_name": "a.png"}', 'line 5: write {"file_name": "image.png", "text": "what it shows"}'),
        ('{"file_name": "e.png", "text": "x"}', "line 5: no such image here: e.png"),
        ('{"file_name": "a.png", "text": "x"}', "line 5: another text of a.png than before"),
    ):
        (root / "metadata.jsonl").write_text("\n".join([*lines, line]))
        with pytest.raises(UserError) as error:
            captions(Data(train=f"folder:{root}"))
        assert message in str(error.value)
    (root / "metadata.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(UserError, match=r"1 of 4 images have no line, a\.png for one"):
        captions(Data(train=f"folder:{root}"))


def test_what_the_settings_of_texts_need() -> None:
    for settings, message in (
        ({"template": "a photo"}, "has a {} where the caption comes in"),
        ({"template": "a {}", "condition": "class"}, "template goes with condition: text"),
        ({"samples": {"prompts": ["a"]}, "condition": "class"}, "samples.prompts are texts, and condition is class"),
    ):
        with pytest.raises(ValueError, match=message):
            Config.model_validate({"condition": "text", **settings})


def test_texts_that_are_too_long_are_counted_and_nothing_is_encoded_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(text_pipeline(tmp_path, scheduler={"prediction_type": "v_prediction", "steps_offset": 1}))
    assert built.beside is not None
    names = ("hat", "a dress with long sleeves", "shoes")
    task = build_task(Config(condition="text", vae="pipeline", template="the {}"), Facts.plain(names, [1, 1, 1]))
    task.bind(built.beside, 0)
    assert task.process.objective == "v"
    task.ready(torch.device("cpu"))
    assert "1 of 3 texts have more tokens than the 12 that the encoder sees" in caplog.text
    assert "'the a dress with long sleeves …' has 26; shorten them" in caplog.text
    words: Any = built.beside.text
    encoded: list[str] = []
    encode = words.encode

    def noted(texts: list[str], device: torch.device) -> dict[str, torch.Tensor]:
        encoded.extend(texts)
        found: dict[str, torch.Tensor] = encode(texts, device)
        return found

    monkeypatch.setattr(words, "encode", noted)
    told = task.told(torch.tensor([2, -1, 0]))["text"]
    assert torch.equal(told, encode(["the shoes", "", "the hat"], torch.device("cpu"))["text"])
    assert not encoded, "all are held"
    number = task.number("a new one")
    assert task.number("a new one") == number == 3
    assert task.caption("hat") == 0
    task.told(torch.tensor([3, 3]))
    task.told(torch.tensor([3]))
    assert encoded == ["a new one"]


def test_what_no_pipeline_of_texts_takes_has_one_of_its_own(tmp_path: Path) -> None:
    """Flow, which diffusers' pipeline of a UNet and texts cannot sample: the folder's own code makes the same images."""
    built = build(text_pipeline(tmp_path / "pipe"))
    assert built.beside is not None
    settings = {"condition": "text", "vae": "pipeline", "samples": {"steps": 4}, "objective": "flow", "retarget": True}
    task = build_task(Config.model_validate(settings), Facts.plain(("hat", "shoes"), [1, 1]))
    task.bind(built.beside, 0)
    new = tmp_path / "new"
    form, told = pipeline.write(built.network.eval(), task, new)
    assert form.own
    assert "prompt='hat'" in form.code
    assert told["classes"] == []
    pipeline.check(built.network, task, form, new)
    last: Any = built.network.get_submodule("conv_out")
    with torch.no_grad():
        last.bias.add_(1)
    with pytest.raises(UserError, match="makes other images than the run"):
        pipeline.check(built.network, task, form, new)
