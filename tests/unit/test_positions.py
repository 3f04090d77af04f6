"""Tables of positions for images of another size: each rule value by value, and the libraries' networks at other sizes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models import Built, build_model
from trainer.models.positions import Grid, positions_of
from trainer.spec import Output

POS = "embeddings.position_embeddings"
BIAS = "attn.relative_position_bias_table"


def resampled(name: str, table: torch.Tensor, *shape: int, grids: tuple[Grid, ...] = (), old: Grid | None = None) -> torch.Tensor:
    found = positions_of(name, table, torch.Size(shape), grids, old)
    assert found is not None
    assert found[0].shape == torch.Size(shape)
    return found[0]


def ramp(rows: int, columns: int) -> torch.Tensor:
    """[rows * columns, 2]: where a token is, between -1 and 1, as the middles of equal parts."""
    y, x = ((2 * torch.arange(side) + 1) / side - 1 for side in (rows, columns))
    return torch.stack([y[:, None].expand(rows, columns), x[None].expand(rows, columns)], -1).reshape(-1, 2)


def inner(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Without the border, where bicubic interpolation has no neighbours."""
    return table.reshape(rows, columns, -1)[2:-2, 2:-2]


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("new", [(12, 12), (8, 8), (14, 7)])
def test_a_grid_of_tokens_is_resampled_and_those_before_it_stay(prefix: int, new: Grid) -> None:
    old = (10, 10) if new[0] == new[1] else (20, 10)
    front = torch.randn(prefix, 2)
    table = torch.cat([front, ramp(*old)])
    grids = ((40, 40), new) if prefix > 1 or new[0] != new[1] else ()
    for with_batch in (True, False):
        given = table[None] if with_batch else table
        shape = (1, prefix + new[0] * new[1], 2)
        there = resampled(POS, given, *(shape if with_batch else shape[1:]), grids=grids)
        there = there[0] if with_batch else there
        assert torch.equal(there[:prefix], front)
        torch.testing.assert_close(inner(there[prefix:], *new), inner(ramp(*new), *new), atol=0.02, rtol=0)
        if new[0] == new[1]:
            library = resample_abs_pos_embed(table[None], list(new), list(old), num_prefix_tokens=prefix)
            torch.testing.assert_close(there, library[0])


def test_a_grid_that_is_not_square_needs_to_be_known_or_of_like_proportions() -> None:
    table = ramp(12, 18)[None]
    there = resampled(POS, table, 1, 64, 2, grids=((8, 8),), old=(12, 18))
    torch.testing.assert_close(inner(there[0], 8, 8), inner(ramp(8, 8), 8, 8), atol=0.02, rtol=0)
    assert positions_of(POS, table, torch.Size((1, 64, 2)), ((8, 8),)) is None
    wide = resampled(POS, ramp(8, 8)[None], 1, 216, 2, grids=((12, 18),))
    torch.testing.assert_close(inner(wide[0], 12, 18), inner(ramp(12, 18), 12, 18), atol=0.02, rtol=0)


@pytest.mark.parametrize("order", ["chw", "hwc", "1chw", "1hwc"])
def test_a_table_that_lies_as_a_map(order: str) -> None:
    plain, wanted = (ramp(*size).reshape(*size, 2) for size in ((10, 12), (9, 16)))
    tables = [table if order.endswith("hwc") else table.permute(2, 0, 1) for table in (plain, wanted)]
    tables = [table[None] if order.startswith("1") else table for table in tables]
    there = resampled("encoder.pos_embed", tables[0], *tables[1].shape)
    there = there[0] if order.startswith("1") else there
    there = there if order.endswith("hwc") else there.permute(1, 2, 0)
    torch.testing.assert_close(there[2:-2, 2:-2], wanted[2:-2, 2:-2], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (7, 7)), ((7, 7), (12, 12)), ((12, 12), (7, 7)), ((7, 7), (4, 4)), ((4, 6), (6, 9))]
)
@pytest.mark.parametrize("extra", [0, 3])
def test_relative_biases_are_laid_out_as_timm_does(old: Grid, new: Grid, extra: int) -> None:
    before, after = (((2 * h - 1), (2 * w - 1)) for h, w in (old, new))
    table = torch.randn(before[0] * before[1] + extra, 3)
    shape = (after[0] * after[1] + extra, 3)
    there = resampled(BIAS, table, *shape, grids=(new,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm's own code
        library = resize_rel_pos_bias_table(table, new, shape, old)
    torch.testing.assert_close(there, library, atol=1e-4, rtol=1e-4)
    if extra:
        assert torch.equal(there[-3:], table[-3:])
    middle = there[: after[0] * after[1]].reshape(*after, 3)[new[0] - 1, new[1] - 1]
    torch.testing.assert_close(middle, table[: before[0] * before[1]].reshape(*before, 3)[old[0] - 1, old[1] - 1])
    if not extra:
        lying = resampled("rel_pos.bias", table.T.reshape(3, *before), 3, *after)
        torch.testing.assert_close(lying.flatten(1).T, there, atol=1e-6, rtol=0)


def test_a_small_offset_keeps_its_bias_and_the_largest_meets_the_largest() -> None:
    """One head whose bias is the offset itself: after stretching, small offsets are almost themselves."""
    offsets = torch.arange(-6.0, 7.0)
    table = offsets[None].expand(13, 13).reshape(169, 1)
    there = resampled(BIAS, table, 23 * 23, 1).reshape(23, 23)[11]
    assert float(there[11]) == 0
    torch.testing.assert_close(there[[10, 12]], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(there[[0, 22]], torch.tensor([-6.0, 6.0]), atol=0.01, rtol=0)
    assert bool((there.diff() > 0).all())


def test_biases_of_distances() -> None:
    table = ramp(10, 10).T.contiguous()  # [heads, h * w]
    there = resampled("attention.attention_biases", table, 2, 144)
    torch.testing.assert_close(inner(there.T, 12, 12), inner(ramp(12, 12), 12, 12), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("fc.weight", (100, 8), (64, 8)),  # a layer of other outputs
        ("queries", (1, 13, 8), (1, 20, 8)),  # tokens, but of no grid
        (POS, (1, 65, 8), (1, 60, 8)),
        (POS, (1, 65, 8), (1, 257, 9)),
        (POS, (10, 8), (20, 9)),
        ("conv.weight", (1, 8, 3, 3), (1, 8, 5, 5)),
        ("pos_embed", (2, 8, 3, 3), (2, 8, 5, 5)),
        (BIAS, (169, 3), (169, 4)),
        (BIAS, (170, 3), (529, 3)),
        ("relative.weight", (100, 3), (80, 3)),
    ],
)
def test_what_is_no_table_of_positions_is_left_alone(name: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    assert positions_of(name, torch.zeros(old), torch.Size(new)) is None


# --- networks at other sizes, from folders that transformers saved -------------------------------------------------------

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {**TINY, "image_size": 32, "patch_size": 8}
VIT = {**PATCHES, "intermediate_size": 24}
CLASSES = ("ant", "bee", "cat")


def saved(folder: Path, kind: Any, settings: Any) -> Any:
    """A network whose positions matter, as its library saves it."""
    torch.manual_seed(1)
    settings.num_labels = 3
    settings.id2label, settings.label2id = dict(enumerate(CLASSES)), {name: i for i, name in enumerate(CLASSES)}
    network = kind(settings).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bias_table" in name or "attention_biases" in name:
                nn.init.normal_(parameter, std=5.0)
            elif "position" in name or "cls_token" in name:
                nn.init.normal_(parameter, std=0.5)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    return network


def built(folder: Path, size: int | None = None) -> Built:
    return build_model(Model(source=f"transformers:{folder}", adapt=Adapt(image_size=size)), "auto", (Output("", CLASSES),), 0)


def answers(network: nn.Module, size: int, **more: Any) -> torch.Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = network.eval()(images, **more)
    return torch.as_tensor(getattr(found, "logits", found))


NETWORKS: dict[str, tuple[str, dict[str, Any], int, list[str]]] = {
    "vit": ("ViT", VIT, 48, ["4 x 4 to 6 x 6"]),
    "vit smaller": ("ViT", VIT, 24, ["4 x 4 to 3 x 3"]),
    "deit": ("DeiT", VIT, 48, ["4 x 4 to 6 x 6"]),
    "dinov2": ("Dinov2", PATCHES, 48, ["4 x 4 to 6 x 6"]),
    "registers": ("Dinov2WithRegisters", {**PATCHES, "num_register_tokens": 3}, 48, ["4 x 4 to 6 x 6"]),
    "beit": ("Beit", {**VIT, "use_relative_position_bias": True}, 48, ["7 x 7 to 11 x 11"] * 2),
    "beit shared": (
        "Beit",
        {**VIT, "use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True},
        48,
        ["4 x 4 to 6 x 6", "7 x 7 to 11 x 11"],
    ),
    "swin": (
        "Swin",
        {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
         "use_absolute_embeddings": True},
        96,
        ["16 x 16 to 24 x 24"],
    ),
    "swinv2": (
        "Swinv2",
        {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        96,
        [],
    ),
    "hiera": (
        "Hiera",
        {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
        96,
        ["16 x 16 to 24 x 24"],
    ),
    "levit": (
        "Levit",
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2] * 3, "depths": [1] * 3, "key_dim": [8] * 3},
        128,
        ["4 x 4 to 8 x 8"] * 2 + ["2 x 2 to 4 x 4"] * 2 + ["1 x 1 to 2 x 2"],
    ),
    "wide": ("ViT", {**VIT, "image_size": [32, 48]}, 48, ["4 x 6 to 6 x 6"]),
}  # fmt: skip
INTERPOLATING = ("vit", "deit", "dinov2", "registers")  # bicubically, by their library, when it is asked


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_at_another_size(tmp_path: Path, name: str) -> None:
    family, values, size, told = NETWORKS[name]
    settings = getattr(transformers, f"{family}Config")(**values)
    library = saved(tmp_path, getattr(transformers, f"{family}ForImageClassification"), settings)
    own = values["image_size"]
    if name != "wide":
        own = own if isinstance(own, int) else own[0]
        unchanged = built(tmp_path)
        assert unchanged.spec.image_size == own
        assert not unchanged.fresh
        torch.testing.assert_close(answers(unchanged.network, own), answers(library, own), rtol=0, atol=0)
    other = built(tmp_path, size)
    assert not other.fresh
    assert [entry.partition("resampled from ")[2] for entry in other.report.adapted] == told
    there = answers(other.network, size)
    assert bool(torch.isfinite(there).all())
    if name in INTERPOLATING:  # with another cubic (torch's is that of PIL only where it is anti-aliased), so not to the bit
        more = {"interpolate_pos_encoding": True} if name in ("vit", "deit") else {}
        torch.testing.assert_close(there, answers(library, size, **more), atol=0.02, rtol=0.02)
    # what the positions say is taken over: without them the answers are others
    with torch.no_grad():
        for key, parameter in other.network.named_parameters():
            if "position" in key or "bias_table" in key or "attention_biases" in key:
                parameter.zero_()
    if told:
        other.network.train()  # LeViT keeps its biases from one evaluation to the next
        assert (answers(other.network, size) - there).abs().max() > (0.05 if name in INTERPOLATING else 0.005)


def test_a_size_that_cannot_be_is_refused_with_the_nearest_that_can(tmp_path: Path) -> None:
    family, values, _, _ = NETWORKS["hiera"]
    saved(tmp_path, getattr(transformers, f"{family}ForImageClassification"), getattr(transformers, f"{family}Config")(**values))
    with pytest.raises(UserError, match=r"does not take images of 100 x 100 .* nearest that was found to go through is 96"):
        built(tmp_path, 100)


def test_an_index_that_follows_from_the_size_is_not_read(tmp_path: Path) -> None:
    """A network of one's own with a window of the image's size, whose index is a buffer that is saved."""
    (tmp_path / "net.py").write_text("""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * side - 1) ** 2, 1))
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack([y.flatten(), x.flatten()])
        offsets = places[:, :, None] - places[:, None] + side - 1
        self.register_buffer("index", offsets[0] * (2 * side - 1) + offsets[1])
        self.register_buffer("order", torch.randperm(4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)[..., self.order]
        mixed = self.relative_position_bias_table[self.index, 0].softmax(-1) @ tokens
        return self.fc(mixed.mean(1))

def make(side=4):
    return Net(side)
""")
    source = f"python:{tmp_path}/net.py:make"
    outputs = (Output("", CLASSES),)
    first = build_model(Model(source=source, adapt=Adapt(image_size=32)), "none", outputs, 0)
    torch.save(first.network.state_dict(), tmp_path / "w.pt")
    model = Model(source=source, weights=str(tmp_path / "w.pt"), args={"side": 6}, adapt=Adapt(image_size=48))
    other = build_model(model, "none", outputs, 1)
    assert sorted(other.report.adapted) == [
        "index: not read, it follows from the size",
        "relative_position_bias_table: relative positions resampled from 7 x 7 to 11 x 11",
    ]
    assert other.network.index.max() == 120  # type: ignore[operator]
    assert torch.equal(other.network.order, first.network.order)  # type: ignore[arg-type]
    assert bool(torch.isfinite(answers(other.network, 48)).all())
