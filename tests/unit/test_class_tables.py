"""The class tables of conditional generators, given other classes by name: row by row, and back in diffusers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from tests.unit.test_models_libraries import unet_folder
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.class_tables import adapt_classes, class_names, class_tables
from trainer.models.diffusers import load

OLD = ("ant", "bee", "cat", "dog", "elk")  # of a table of six rows: the last stands for no class
NEW = ("dog", "yak", "ant", "zebu")


def dit_folder(folder: Path, classes: int = 5) -> Any:
    torch.manual_seed(1)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, norm_num_groups=4, in_channels=4, sample_size=8,
        num_embeds_ada_norm=classes,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    network.eval().save_pretrained(folder)
    return network


def rows_of(network: nn.Module) -> list[torch.Tensor]:
    return [network.get_parameter(f"{name}.weight").detach().clone() for name in class_tables(network)]


def unet_answers(network: Any, labels: list[int]) -> torch.Tensor:
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(len(labels), -1, -1, -1)
    with torch.no_grad():
        return torch.as_tensor(network.eval()(images, 3, class_labels=torch.tensor(labels)).sample)


def dit_answers(network: Any, labels: list[int]) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(len(labels), -1, -1, -1)
    with torch.no_grad():
        found = network.eval()(latents, timestep=torch.tensor([3] * len(labels)), class_labels=torch.tensor(labels))
    return torch.as_tensor(found.sample)


@pytest.mark.parametrize("new_rows", ["random", "zero", "mean"])
def test_rows_of_shared_classes_are_kept_and_others_begin_as_they_are_told(tmp_path: Path, new_rows: Any) -> None:
    dit_folder(tmp_path)
    network = load(str(tmp_path))
    old = rows_of(network)
    adapt = Adapt(new_rows=new_rows, like={"zebu": "cat"}, head="shared")
    report = adapt_classes(network, OLD, NEW, adapt, 7)
    names = [f"transformer_blocks.{index}.norm1.emb.class_embedder.embedding_table.weight" for index in (0, 1)]
    assert report.adapted == [f"{name}: 2 of 4 classes kept, 1 begun like others" for name in names]
    for before, after in zip(old, rows_of(network), strict=True):
        assert after.shape == (5, 16)
        assert torch.equal(after[[0, 2, 3, 4]], before[[3, 0, 2, 5]])
        if new_rows == "zero":
            assert not after[1].any()
        elif new_rows == "mean":
            torch.testing.assert_close(after[1], before[:5].mean(0))  # without the row for no class
        else:
            assert 0.05 < float(after[1].std()) < 0.5
    again = load(str(tmp_path))
    adapt_classes(again, OLD, NEW, adapt, 7)
    assert all(torch.equal(a, b) for a, b in zip(rows_of(network), rows_of(again), strict=True))
    tables = rows_of(network)
    assert new_rows != "random" or not torch.equal(tables[0][1], tables[1][1]), "each table has its own"


def test_a_unet_goes_back_to_diffusers_with_equal_outputs_for_the_classes_it_kept(tmp_path: Path) -> None:
    library = unet_folder(tmp_path / "saved")
    network: Any = load(str(tmp_path / "saved"))
    report = adapt_classes(network, OLD, NEW, Adapt(rename={"yak": "elk"}), 0)
    assert report.adapted == ["class_embedding.weight: 3 of 4 classes kept"]
    network.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["num_class_embeds"] == 5
    plain = diffusers.UNet2DModel.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(unet_answers(plain, [0, 1, 2, 4]), unet_answers(library, [3, 4, 0, 5]), rtol=0, atol=0)
    assert not torch.allclose(unet_answers(plain, [3]), unet_answers(library, [5]))


def test_a_dit_goes_back_to_diffusers_with_equal_outputs_and_drops_classes_in_training(tmp_path: Path) -> None:
    library = dit_folder(tmp_path / "saved")
    network: Any = load(str(tmp_path / "saved"))
    adapt_classes(network, OLD, NEW, Adapt(), 0)
    network.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["num_embeds_ada_norm"] == 4
    plain: Any = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(dit_answers(plain, [0, 2, 4]), dit_answers(library, [3, 0, 5]), rtol=0, atol=0)
    embedder = network.transformer_blocks[0].norm1.emb.class_embedder
    embedder.dropout_prob = 1.0
    assert embedder.token_drop(torch.tensor([0, 1])).tolist() == [4, 4], "the row for no class is the last of the new table"


def test_a_table_without_a_row_for_no_class_and_one_that_has_it_first(tmp_path: Path) -> None:
    unet_folder(tmp_path)
    network = load(str(tmp_path))
    (old,) = rows_of(network)
    six = (*OLD, "fox")
    adapt_classes(network, six, ("fox", "ant"), Adapt(), 0)
    (new,) = rows_of(network)
    assert torch.equal(new, old[[5, 0]])
    other = load(str(tmp_path))
    adapt_classes(other, OLD, ("elk", "ant"), Adapt(), 0, null="first")
    (new,) = rows_of(other)
    assert torch.equal(new, old[[0, 5, 1]])


def test_classes_that_are_the_same_change_nothing_and_unknown_ones_begin_anew(tmp_path: Path) -> None:
    dit_folder(tmp_path)
    network = load(str(tmp_path))
    old = rows_of(network)
    report = adapt_classes(network, OLD, OLD, Adapt(), 0)
    assert len(report.matched) == 2
    assert all(torch.equal(a, b) for a, b in zip(rows_of(network), old, strict=True))
    report = adapt_classes(network, OLD, ("x", "y"), Adapt(new_rows="mean"), 0)
    assert len(report.fresh) == 2
    torch.testing.assert_close(rows_of(network)[0][:2], old[0][:5].mean(0).expand(2, -1))
    assert torch.equal(rows_of(network)[0][2], old[0][5])
    unnamed = load(str(tmp_path))
    adapt_classes(unnamed, None, ("x", "y", "z"), Adapt(head="new"), 0)
    assert rows_of(unnamed)[0].shape == (4, 16)
    assert torch.equal(rows_of(unnamed)[1][3], old[1][5])


def test_a_name_that_the_generator_has_twice_says_nothing(tmp_path: Path) -> None:
    dit_folder(tmp_path)
    network = load(str(tmp_path))
    old = rows_of(network)[0]
    adapt_classes(network, ("crane", "bee", "crane", "dog", "elk"), ("crane", "dog"), Adapt(new_rows="zero"), 0)
    assert torch.equal(rows_of(network)[0][1], old[3])
    assert not rows_of(network)[0][0].any()


@pytest.mark.parametrize(
    ("old", "new", "adapt", "message"),
    [
        (OLD[:3], NEW, {}, "6 rows of class embeddings and 3 class names"),
        (OLD, ("dog", "dog"), {}, "the task has the class 'dog' twice"),
        (OLD, (), {}, "the task has no classes"),
        (OLD, NEW, {"rename": {"yak": "elf"}}, r"rename: the DiTTransformer2DModel has no class 'elf'; did you mean 'elk'"),
        (OLD, ("x", "y"), {"head": "shared"}, "shares no class with the task"),
        (None, NEW, {"like": {"yak": "cat"}}, "does not name its classes"),
        (OLD, NEW, {"null": "first"}, "has its row for no class last"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_changed(tmp_path: Path, old: Any, new: Any, adapt: Any, message: str) -> None:
    network = dit_folder(tmp_path)
    before = copy.deepcopy(network.state_dict())
    where = {"null": adapt["null"]} if "null" in adapt else {}
    with pytest.raises(UserError, match=message):
        adapt_classes(network, old, new, Adapt(**({} if where else adapt)), 0, **where)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.config.num_embeds_ada_norm == 5
    with pytest.raises(UserError, match="a Linear, has no table of class embeddings"):
        adapt_classes(nn.Linear(2, 2), OLD, NEW, Adapt(), 0)


def test_the_class_names_of_a_pipeline(tmp_path: Path) -> None:
    network = dit_folder(tmp_path / "one")
    scheduler = diffusers.DDPMScheduler()
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",),
                                  up_block_types=("UpDecoderBlock2D",))  # fmt: skip
    diffusers.DiTPipeline(network, vae, scheduler).save_pretrained(tmp_path / "pipe")
    assert class_names(f"{tmp_path}/pipe#transformer") is None
    assert class_names(f"{tmp_path}/one") is None
    index = tmp_path / "pipe" / "model_index.json"
    said = json.loads(index.read_text())
    index.write_text(json.dumps({**said, "id2label": {"1": "bee, honey bee", "0": "ant", "2": "cat"}}))
    assert class_names(f"{tmp_path}/pipe#transformer") == ("ant", "bee", "cat")
    for wrong in ({"0": "ant", "2": "cat"}, {"a": "ant"}, ["ant"]):
        index.write_text(json.dumps({**said, "id2label": wrong}))
        with pytest.raises(UserError, match="id2label in model_index"):
            class_names(f"{tmp_path}/pipe#transformer")
