"""Buckets of aspect ratios: which size an image has, and an order whose steps are each of one size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.test_generators import DIT, UNET
from trainer import aspects
from trainer.config import Run, UserError
from trainer.config.buckets import Buckets, sizes
from trainer.config.sources import Listing, open_splits
from trainer.data.buckets import BucketOrder, Sorted, nearest, sort
from trainer.data.dataset import ImageDataset
from trainer.data.loader import eval_batches, train_batches
from trainer.models import build_model
from trainer.models.kinds import _xl
from trainer.spec import Generator, InputSpec

SPEC = InputSpec(3, 16, (0.5,) * 3, (0.5,) * 3)
OF = np.array([0] * 13 + [2] * 5 + [1] * 7 + [0] * 4)
SORTED = Sorted(((16, 16), (8, 32), (32, 8)), OF, 4)


def photographs(folder: Path, *, count: int = 22) -> Path:
    """Of four aspects; two files in three are upright by their pixels, one in eleven by EXIF alone, and one is no image."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = ((20, 20), (24, 12), (12, 24), (60, 10))
    for number in range(count):
        image = Image.fromarray(np.full((*shapes[number % 4][::-1], 3), 10 * number, np.uint8))
        exif = Image.Exif()
        if number % 11 == 1:
            exif[0x0112] = 6
        image.save(folder / f"{number:02d}.png", exif=exif)
    return folder


def run_of(folder: Path, **more: Any) -> Run:
    sections: dict[str, Any] = {
        "name": "run",
        "task": {"kind": "diffusion", "condition": "none"},
        "model": {"source": "diffusers:UNet2DModel", "args": UNET, "adapt": {"image_size": 16}},
        "strategy": {"kind": "full"},
        "data": {"train": f"folder:{folder}", "buckets": {"step": 8, "max_ratio": 4}, "workers": 0},
        "optimizer": {"kind": "adamw", "lr": 1e-3},
        "train": {"global_batch": 4},
    }
    for name, value in more.items():
        sections[name] = value if name == "task" and "kind" in value else {**sections.get(name, {}), **value}
    return Run.model_validate(sections)


def listed(run: Run) -> Listing:
    return open_splits(run.data, 0, looks_at="nothing").train


def test_sizes_are_multiples_of_the_step_and_no_larger_than_the_square() -> None:
    found = sizes(Buckets(step=64, max_ratio=2.0), 512)
    assert found == ((512, 512), (448, 576), (576, 448), (384, 640), (640, 384))
    assert sizes(Buckets(step=8, max_ratio=1.5), 16) == ((16, 16),)
    with pytest.raises(UserError, match=r"write data\.buckets\.step: 50, or model\.adapt\.image_size: 128"):
        sizes(Buckets(step=64), 100)


def test_an_image_has_the_size_of_the_nearest_aspect_by_its_header(tmp_path: Path) -> None:
    assert [nearest(SORTED.sizes, *sides) for sides in ((100, 100), (10, 19), (10, 21), (21, 10), (9, 90))] == [0, 0, 1, 2, 1]
    run = run_of(photographs(tmp_path))
    (tmp_path / "08.png").write_bytes(b"no image")
    found = sort(run, listed(run), 16)
    assert found.sizes == SORTED.sizes
    lying, standing, long = 0, 0, 1  # 2:1 is as near to the square as to 4:1, which comes later
    assert found.of.tolist() == [[0, lying, standing, long][number % 4] for number in range(22)]
    finer = run.model_copy(update={"data": run.data.model_copy(update={"buckets": Buckets(step=2, max_ratio=2)})})
    turned = sort(finer, listed(finer), 16)
    sides = [turned.size(number) for number in (0, 1, 2, 3, 5, 8)]
    assert sides == [(16, 16), (20, 12), (20, 12), (12, 20), (12, 20), (16, 16)], "the second is turned by EXIF"


def test_every_batch_is_of_one_bucket_and_every_image_comes_as_often() -> None:
    order, n, batch = BucketOrder(SORTED, 7), len(OF), SORTED.together
    keys = order.slice(0, 40 * n * batch)
    assert keys == BucketOrder(SORTED, 7).slice(0, 40 * n * batch)
    assert keys[4 * 57 + 1 : 4 * 60 + 3] == BucketOrder(SORTED, 7).slice(4 * 57 + 1, 4 * 60 + 3), "from anywhere"
    assert order.at(1234) == keys[1234]
    assert len(set(keys)) == len(keys), "no key comes twice"
    for first in range(0, len(keys), batch):
        assert len({int(OF[index]) for _, index in keys[first : first + batch]}) == 1
    for epochs in (3, 40, 160):
        seen = Counter(index for _, index in keys[: epochs * n])
        for bucket, count in enumerate(SORTED.counts().tolist()):
            within = [seen[index] for index in np.flatnonzero(bucket == OF).tolist()]
            assert max(within) - min(within) <= 1
            assert abs(sum(within) - epochs * count) <= 2 * batch
    other, late = BucketOrder(SORTED, 8).slice(0, n), order.slice(20 * n, 21 * n)
    assert len({tuple(index for _, index in some) for some in (keys[:n], other, late)}) == 3


def test_a_bucket_of_few_images_waits_until_a_step_is_full() -> None:
    rare = Sorted(((16, 16), (8, 32)), np.array([0] * 63 + [1]), 16)
    keys = BucketOrder(rare, 0).slice(0, 16 * 64)
    places = [place for place, (_, index) in enumerate(keys) if index == 63]
    assert len(places) == 16
    assert places[-1] - places[0] == 15
    assert [keys[place][0] for place in places] == list(range(16))


def test_ranks_share_a_step_of_one_size_and_an_evaluation_sees_each_once(tmp_path: Path) -> None:
    run = run_of(photographs(tmp_path), data={"augment": {"crop": "random", "flip": 0.5}})
    listing = listed(run)
    found = sort(run, listing, 16)
    data = ImageDataset(listing, run.data, SPEC, train=True, seed=3, buckets=found)

    def steps(rank: int, world: int, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batches = train_batches(
            data, seed=3, start_step=start, steps=12, global_batch=4, micro_batch=2, rank=rank, world=world, workers=0, pin=False
        )
        return [(torch.cat([b.indices for b in step]), torch.cat([b.images for b in step])) for step in batches]

    alone, parts = steps(0, 1), [steps(rank, 2) for rank in range(2)]
    for number, (indices, images) in enumerate(alone):
        assert torch.equal(indices, torch.cat([part[number][0] for part in parts]))
        assert torch.equal(images, torch.cat([part[number][1] for part in parts]))
    assert {tuple(images.shape) for _, images in alone} == {(4, 3, 16, 16), (4, 3, 8, 32)}
    assert all(torch.equal(one[1], other[1]) for one, other in zip(alone[5:], steps(0, 1, start=5), strict=True))
    shown = ImageDataset(listing, run.data, SPEC, train=False, seed=3, buckets=found)
    whole: list[int] = []
    for rank in range(2):
        for batch in eval_batches(shown, batch=3, rank=rank, world=2, workers=0, pin=False):
            assert {found.size(index) for index in batch.indices.tolist()} == {tuple(batch.images.shape[2:])}
            assert torch.equal(batch.images[:, 0, 0, 0], (10 * batch.indices).to(torch.uint8)), "each its own picture"
            whole += batch.indices.tolist()
    assert sorted(whole) == list(range(22))


def test_an_image_covers_its_size_without_being_squeezed(tmp_path: Path) -> None:
    """A picture of 40 x 16 whose middle 32 columns are white, cut to 32 x 16: all white but for the seam."""
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 4:36] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    run = run_of(tmp_path, data={"buckets": {"step": 8, "max_ratio": 4}, "min_per_class": 1})
    found = Sorted(((16, 32),), np.zeros(1, np.int64), 1)
    data = ImageDataset(listed(run), run.data, SPEC, train=False, seed=0, buckets=found)
    assert torch.equal(data.fetch([(0, 0)]).images, torch.full((1, 3, 16, 32), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"task": {"kind": "classify"}}, "is of task diffusion, and this is classify"),
        ({"task": {"pairs": {"kind": "grey"}}}, "leave task.pairs or data.buckets out"),
        ({"task": {"prior": {"images": 4, "prompts": ["a"]}, "condition": "text"}}, "leave task.prior or data.buckets out"),
        ({"data": {"cache": "features"}}, "write data.cache: none"),
        ({"data": {"cache": "decoded"}}, "write data.cache: none"),
        ({"data": {"sampling": {"kind": "balanced"}}}, "data.sampling is balanced; leave it out"),
        ({"data": {"resize_to": 32}}, "so does data.resize_to: 32; leave it out"),
        ({"data": {"augment": {"crop": "resized"}}}, "write none, or random"),
        ({"data": {"train": "digits:0-4/train"}}, "digits all have one size"),
        ({"data": {"buckets": {"step": 12}}}, "write data.buckets.step: 8, or model.adapt.image_size: 24"),
        ({"data": {"mix": {"mixup": 0.2}}}, "leave data.mix out"),
        ({"train": {"compile": "blocks"}}, "does not go with data.buckets"),
    ],
)
def test_what_does_not_go_with_buckets_is_refused(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run_of(tmp_path, **sections)


def test_a_network_that_does_not_make_the_sizes_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    built = build_model(run.model, "auto", Generator((), False), 0)
    assert aspects.fitting(run, built) == SORTED.sizes
    odd = run_of(tmp_path, data={"buckets": {"step": 1}})
    with pytest.raises(UserError, match=r"does not make images of \d+ x \d+ .*; write data.buckets.step: 2$"):
        aspects.fitting(odd, built)
    learnt = run_of(tmp_path, model={"source": "diffusers:DiTTransformer2DModel", "args": DIT})
    with pytest.raises(UserError, match="has learnt places, and makes images of one size"):
        aspects.fitting(learnt, build_model(learnt.model, "auto", Generator((), False), 0))


def test_a_network_that_is_told_the_size_is_told_that_of_the_bucket() -> None:
    heard: list[torch.Tensor] = []

    class Listens(torch.nn.Module):
        def forward(self, images: torch.Tensor, times: torch.Tensor, **told: Any) -> tuple[torch.Tensor]:
            heard.append(told["added_cond_kwargs"]["time_ids"])
            return (images,)

    told = {"text": torch.zeros(2, 3, 4), "pooled": torch.zeros(2, 4)}
    _xl(Listens(), torch.zeros(2, 4, 6, 10), torch.zeros(2), told, factor=8)
    assert heard[0].tolist() == [[48, 80, 0, 0, 48, 80]] * 2
