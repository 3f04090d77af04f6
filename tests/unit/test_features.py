"""What features are of, how they lie on disk, and which of them a key reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.network import deep
from tests.trainers import run_file
from trainer import strategies
from trainer.config import Run, UserError, load
from trainer.config.run import Augment, Data
from trainer.config.sources import open_source
from trainer.data import Batch, ImageDataset
from trainer.features import identity, samples
from trainer.features.choose import Choice, choose, granted
from trainer.features.fill import unreadable
from trainer.features.samples import FeatureSamples, Rows
from trainer.features.store import Store, find
from trainer.spec import InputSpec

CPU = torch.device("cpu")
SPEC = InputSpec(1, 8, (0.5,), (0.5,))
LEARNT = "strategy={kind: head}"
STILL = "data.augment={crop: none, flip: 0.0}"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    run_file(tmp_path)
    return lambda *changes: load(tmp_path / "run.yaml", [LEARNT, STILL, "data.cache.kind=features", *changes])


def chosen(run: Run, network: nn.Module, learns: tuple[str, ...] = ("head",), *, seen: int = 10_000, **keys: Any) -> Choice:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(learns))
    return choose(
        run, network, [p for p in network.parameters() if p.requires_grad], SPEC, samples=100, seen=seen,
        train_mode=strategies.train_mode, autocast=nullcontext, device=CPU, **keys,
    )  # fmt: skip


def network(seed: int = 0, head: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = deep()
    torch.manual_seed(head)
    nn.init.normal_(made.get_submodule("head").weight)  # type: ignore[arg-type]
    return made


# --- what they are of


def key(
    run: Run, made: nn.Module, *, random: bool = False, spec: InputSpec = SPEC, tf32: bool = False, device: str = "cpu"
) -> str:  # fmt: skip
    found = chosen(run, made).kept
    assert found is not None
    assert found.cut is not None
    learning = list(made.get_submodule("head").parameters())
    told = identity.description(
        run, spec, found.cut, made, learning, random=random, dtype=found.dtype, tf32=tf32, device=torch.device(device)
    )
    return identity.key_of(told)


def test_a_key_is_that_of_the_frozen_part_and_of_the_pixels(run: Callable[..., Run]) -> None:
    first = key(run(), network())
    assert len(first) == 32
    same = [
        ("optimizer.lr=0.5",), ("train.seed=9",), ("train.global_batch=7",), ("data.workers=3",), ("train.ema=0.5",), ("name=b",),
        ("data.val=split:0.3", "data.fraction=0.5"), ("task.label_smoothing=0.1",), ("data.max_bad=3",),
    ]  # fmt: skip
    assert {change: key(run(*change), network()) for change in same} == dict.fromkeys(same, first)
    assert key(run(), network(head=5)) == first, "the head is not part of it"
    other = {
        "weights": key(run(), network(seed=1)),
        "size": key(run("data.resize_to=9"), network()),
        "interpolation": key(run("data.interpolation=bicubic"), network()),
        "mean": key(run(), network(), spec=InputSpec(1, 8, (0.4,), (0.5,))),
        "dtype": key(run("data.cache.dtype=bf16"), network()),
        "precision": key(run("train.precision=bf16"), network()),
        "device": key(run(), network(), device="cuda"),
        "tf32": key(run(), network(), tf32=True, device="cuda"),
        "pixels": key(run("data.max_pixels=100"), network()),
        "arguments": key(run("model.args={norm: true}"), network()),
        "changed": key(run("data.augment.flip=0.5", "data.cache.views=2"), network(), random=True),
        "otherwise": key(run("data.augment.flip=0.4", "data.cache.views=2"), network(), random=True),
        "by another seed": key(run("data.augment.flip=0.5", "data.cache.views=2", "train.seed=9"), network(), random=True),
    }
    assert len({first, *other.values()}) == 1 + len(other), other


def test_a_statistic_or_a_parameter_that_stands_in_the_network_itself_counts(run: Callable[..., Run]) -> None:
    made = network()
    before = key(run(), made)
    made.get_submodule("units.1.norm").running_var[3] += 1  # type: ignore[index, operator]
    assert key(run(), made) != before
    made.get_submodule("units.1.norm").running_var[3] -= 1  # type: ignore[index, operator]
    assert key(run(), made) == before
    made.register_buffer("offset", torch.zeros(3))
    assert key(run(), made) != before


def pictures(root: Path) -> Path:
    for place in range(6):
        path = root / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * place).save(path)
    return root


def test_samples_are_known_by_their_files(tmp_path: Path) -> None:
    listing = open_source(f"folder:{pictures(tmp_path / 'one')}")
    ids = identity.samples(listing)
    assert ids.shape == (6, 2)
    assert len({tuple(row) for row in ids.tolist()}) == 6
    path = tmp_path / "one/b/3.png"
    told = path.stat()
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns + 1))
    changed = identity.samples(listing) != ids
    assert changed.any(axis=1).tolist() == [item.key == "b/3.png" for item in listing.items]
    elsewhere = identity.samples(open_source(f"folder:{pictures(tmp_path / 'two')}"))
    assert not (elsewhere == ids).all(axis=1).any()
    digits = [identity.samples(open_source(source)) for source in ("digits:0-4/train", "digits:0-4/val", "digits:2-3/train")]
    first, val, some = ({tuple(row) for row in found.tolist()} for found in digits)
    assert not first & val
    assert some < first, "the same samples, whatever classes were chosen"


def test_views_of_a_sample_are_told_apart() -> None:
    ids = np.array([[1, 2], [3, 4], [1, 2]], dtype=np.uint64)
    found = identity.views(ids, 3)
    assert found.shape == (9, 2)
    assert len({tuple(row) for row in found.tolist()}) == 9, "the place in the list decides what is drawn"
    assert np.array_equal(identity.views(ids, 2), found[:6]), "more views keep those there are"


# --- the folder


def stored(folder: Path, rows: int = 10, start: int = 0) -> tuple[Store, str, torch.Tensor, identity.Ids]:
    store = Store(folder, 12)
    store.create({"cut": "fc"})
    values = torch.arange(start, start + rows * 3, dtype=torch.float32).view(rows, 3)
    ids = np.arange(start, start + 2 * rows, dtype=np.uint64).reshape(rows, 2)
    return store, store.write(ids, [values.view(torch.uint8)]), values, ids


def test_what_is_written_is_read_and_damage_shows(tmp_path: Path) -> None:
    store, name, values, ids = stored(tmp_path / "kept")
    again = Store(store.folder, 12)
    assert again.names() == [name]
    (segment,) = again.read([name])
    assert np.array_equal(segment.ids, ids)
    assert again.whole(name)
    assert torch.equal(torch.from_numpy(again.open(name)).view(torch.float32), values)
    assert stored(tmp_path / "kept")[1] == name, "the same content is the same file"
    content = (store.folder / name).read_bytes()
    for place in range(0, len(content), 5):
        (store.folder / name).write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert not Store(store.folder, 12).whole(name), place
    for size in (0, 3, 63, 64, 100, len(content) - 1):
        (store.folder / name).write_bytes(content[:size])
        assert Store(store.folder, 12).read([name]) == []
    (store.folder / name).write_bytes(content)
    assert Store(store.folder, 16).read([name]) == [], "rows of another length"
    assert not list(store.folder.glob(".tmp-*"))


def test_ids_are_found_whichever_file_they_are_in(tmp_path: Path) -> None:
    store, one, _, first = stored(tmp_path / "kept")
    two = stored(tmp_path / "kept", rows=4, start=100)[1]
    segments = store.read([one, two])
    wanted = np.array([first[3], [100, 101], [7, 7], first[3], [6, 0]], dtype=np.uint64)
    which, row = find(wanted, segments)
    assert which.tolist() == [0, 1, -1, 0, -1]
    assert row.tolist() == [3, 0, -1, 3, -1]
    assert find(wanted, [])[0].tolist() == [-1] * 5
    assert find(wanted[:0], segments)[0].tolist() == []


@pytest.mark.parametrize("held", [True, False], ids=["in memory", "mapped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_as_they_arrive_at_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(samples, "IN_MEMORY", 1 << 20 if held else 0)
    values = torch.randn(9, 2, 3)
    kept = values.to(dtype)
    store = Store(tmp_path, kept[0].nbytes)
    ids = np.arange(18, dtype=np.uint64).reshape(9, 2)
    for part in (slice(0, 5), slice(5, 9)):
        store.write(ids[part], [kept[part].reshape(len(kept[part]), -1).view(torch.uint8)])
    names = store.names()
    which, row = find(ids, store.read(names))
    which[4] = row[4] = -1
    rows = Rows(store, names, which, row, (2, 3), dtype, torch.float32)
    chosen = np.array([7, 0, 7, 3, 5])
    assert torch.equal(rows(chosen), kept[chosen].float())
    assert rows(np.empty(0, np.int64)).shape == (0, 2, 3)
    rows(chosen).zero_()
    assert torch.equal(rows(chosen), kept[chosen].float()), "a batch is a copy"


class Remembered:
    """Rows that say their own number."""

    def __call__(self, numbers: Any) -> torch.Tensor:
        return torch.from_numpy(numbers)[:, None]


def reading(root: Path, views: int, bad: dict[int, tuple[str, str]], *, train: bool = True) -> FeatureSamples:
    dataset = ImageDataset(open_source(f"folder:{root}"), Data(train=f"folder:{root}"), SPEC, train=train, seed=3)
    return FeatureSamples(dataset, Remembered(), views, bad, root)  # type: ignore[arg-type]


def test_a_key_reads_the_view_of_its_epoch(tmp_path: Path) -> None:
    """Rows are view * 6 + index; a repetition within an epoch (above 2**32) reads the next view."""
    read = reading(pictures(tmp_path), 3, {})
    keys = [(0, 5), (1, 5), (2, 0), (3, 1), (1 + (1 << 32), 5), (2 + (2 << 32), 4), (7, 2)]
    batch = read.fetch(keys)
    assert batch.images[:, 0].tolist() == [5, 11, 12, 1, 17, 10, 8]
    assert batch.indices.tolist() == [5, 5, 0, 1, 5, 4, 2]
    assert batch.labels.tolist() == [read._dataset.listing.items[i].label for i in batch.indices.tolist()]
    assert read.order(3).slice(0, 12) == read._dataset.order(3).slice(0, 12)


def test_what_cannot_be_read_is_replaced_or_left_out_as_in_the_data_set(tmp_path: Path) -> None:
    root = pictures(tmp_path)
    listing = open_source(f"folder:{root}")
    for index in (2, 3, 5):
        (root / listing.items[index].key).write_bytes(b"no picture")
    data = Data(train=f"folder:{root}", max_bad=5, augment=Augment(flip=0.5))
    keys = [(0, 1), (0, 2), (0, 3), (1, 5), (1, 2)]
    for train in (True, False):
        dataset = ImageDataset(open_source(f"folder:{root}"), data, SPEC, train=train, seed=3)
        images = dataset.fetch(keys)
        bad = {index: (str(root / listing.items[index].key), "why") for index in (2, 3, 5)}
        batch = reading(root, 2, bad, train=train).fetch(keys)
        assert batch.indices.tolist() == images.indices.tolist() == ([1, 4, 4, 0, 4] if train else [1])
        assert batch.labels.tolist() == images.labels.tolist()
        assert [path for path, _ in batch.bad] == [path for path, _ in images.bad]
        assert unreadable(keys, images, 6, train=train).keys() == {2, 3, 5}
        assert all(path == bad[index][0] for index, (path, _) in unreadable(keys, images, 6, train=train).items())
        whole = dataset.fetch([(0, 0), (0, 1)])
        assert unreadable([(0, 0), (0, 1)], whole, 6, train=train) == {}
        assert isinstance(whole, Batch)


# --- whether and why not


def test_features_are_kept_where_that_is_possible_and_pays(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    auto = partial(run, "data.cache=auto")
    changed = ("data.augment.flip=0.5",)
    assert chosen(auto(), network()).why == "it would save no more than seconds"
    monkeypatch.setattr("trainer.features.choose._WORK", 0.0)
    found = chosen(auto(), network())
    assert found.kept is not None
    assert found.kept.cut is not None
    assert (found.kept.cut.module, found.views, found.row) == ("drop", 1, 32)
    assert str(found) == "8 float32 at 'drop', 100% of the work ('drop' draws random numbers in training)"
    reasons = {
        "data.cache is none": chosen(run("data.cache=none"), network()),
        "no sample is seen twice": chosen(auto(), network(), seen=100),
        "everything learns, sooner or later": chosen(auto(), network(), ("",)),
        "the loss needs the images": chosen(auto(), network(), against="the loss needs the images"),
        "data.mix makes every image another mixture": chosen(auto("data.mix={mixup: 0.2}"), network()),
        "data.augment changes each sample anew in every epoch": chosen(auto(*changed), network()),
        "'stem' learns, and nothing comes before it": chosen(auto(), network(), ("stem", "head")),
        "and only 16% of the work comes before 'units.0'": chosen(auto(), network(), ("units", "head")),
    }
    for reason, choice in reasons.items():
        assert choice.kept is None
        assert reason in choice.why
    views = chosen(run(*changed, "data.cache.views=4"), network(), seen=250)
    assert views.views == 3, "no more than there are epochs"
    assert chosen(run("data.cache.views=4"), network()).views == 1, "nothing is changed"
    assert chosen(run("data.cache.dtype=fp16"), network()).row == 16


class Odd(nn.Module):
    """Takes an even number of images only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = deep().get_submodule("stem"), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) % 2:
            raise RuntimeError("an odd number of images")
        y: torch.Tensor = self.head(self.body(x).mean(dim=(2, 3)))
        return y


def test_a_network_that_cannot_be_followed_is_trained_as_it_is(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("trainer.features.choose._WORK", 0.0)
    made = Odd()
    found = chosen(run("data.cache=auto"), made)
    assert found.kept is None
    assert "the network could not be followed (RuntimeError: an odd number of images)" in found.why
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in made.modules())


@pytest.mark.parametrize(
    ("changes", "learns", "reason"),
    [
        (("data.augment.flip=0.5",), ("head",), "data.augment changes each sample anew in every epoch; data.cache.views=4"),
        ((), ("",), "everything learns"),
        ((), ("stem", "head"), "'stem' learns, and nothing comes before it"),
    ],
)
def test_what_is_asked_for_in_vain_is_refused(
    run: Callable[..., Run], changes: tuple[str, ...], learns: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(UserError, match=r"data\.cache: features, and they cannot be kept: .*write data\.cache: none") as refused:
        granted(run(*changes), chosen(run(*changes), network(), learns))
    assert reason in str(refused.value)
