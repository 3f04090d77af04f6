"""The class tables of conditional generators, given other classes by name: row by row, and back in diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.models.class_tables import Table, TableRows, class_names, table_rows

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


def table() -> torch.Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + 1


def new(classes: tuple[str, ...], old: Table, spare: bool = True, **adapt: Any) -> tuple[TableRows, torch.Tensor]:
    found = table_rows(old, classes, spare, Adapt(**adapt), "the weights")
    return found, found.of(table()[: old.rows], torch.Generator().manual_seed(7))


@pytest.mark.parametrize("new_rows", ["random", "zero", "mean"])
def test_rows_of_shared_classes_are_kept_and_others_begin_as_they_are_told(new_rows: Any) -> None:
    found, after = new(NEW, Table(6, OLD, True), new_rows=new_rows, like={"zebu": "cat"}, head="shared")
    assert found.told == "2 of 4 classes kept, 1 begun like others"
    before = table()
    assert after.shape == (5, 16)
    assert torch.equal(after[[0, 2, 3, 4]], before[[3, 0, 2, 5]])
    if new_rows == "zero":
        assert not after[1].any()
    elif new_rows == "mean":
        torch.testing.assert_close(after[1], before[:5].mean(0))  # without the row for no class
    else:
        assert 0.5 < float(after[1].mean()) < 1.5, "like the old ones"
        assert 0.05 < float(after[1].std()) < 0.5


def test_the_row_for_no_class_comes_and_goes() -> None:
    before = table()
    assert torch.equal(new(("elk", "ant"), Table(6, OLD, None))[1], before[[4, 0, 5]]), "a row too many stands for no class"
    assert torch.equal(new(("fox", "ant"), Table(6, (*OLD, "fox"), None), spare=False)[1], before[[5, 0]])
    assert torch.equal(new(("elk", "ant"), Table(6, OLD, True), spare=False)[1], before[[4, 0]])
    added = new(("fox", "ant"), Table(6, (*OLD, "fox"), False))[1]
    assert torch.equal(added[:2], before[[5, 0]])
    assert not any(torch.equal(added[2], row) for row in before)


def test_classes_that_are_the_same_change_nothing_and_unknown_ones_begin_anew() -> None:
    same, after = new(OLD, Table(6, OLD, True))
    assert same.told is None
    assert torch.equal(after, table())
    fresh, after = new(("x", "y"), Table(6, OLD, True), new_rows="mean")
    assert fresh.fresh
    torch.testing.assert_close(after[:2], table()[:5].mean(0).expand(2, -1))
    assert torch.equal(after[2], table()[5])
    assert new(("x", "y", "z"), Table(6, None, True), head="new")[0].fresh
    assert not table_rows(None, OLD, True, Adapt(), "").picks


def test_a_name_that_the_generator_has_twice_says_nothing() -> None:
    _, after = new(("crane", "dog"), Table(6, ("crane", "bee", "crane", "dog", "elk"), True), new_rows="zero")
    assert torch.equal(after[1], table()[3])
    assert not after[0].any()


@pytest.mark.parametrize(
    ("old", "classes", "adapt", "message"),
    [
        (OLD[:3], NEW, {}, "6 rows of class embeddings and 3 class names"),
        (OLD, NEW, {"rename": {"yak": "elf"}}, r"rename: the weights has no class 'elf'; did you mean 'elk'"),
        (OLD, ("x", "y"), {"head": "shared"}, "shares no class with the task"),
        (None, NEW, {"like": {"yak": "cat"}}, "does not name its classes"),
        (OLD, NEW, {"head": "keep"}, "the class table of the weights has 5 classes and the task has 4"),
    ],
)
def test_what_cannot_be_is_refused(old: Any, classes: Any, adapt: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        new(classes, Table(6, old, True), **adapt)


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
