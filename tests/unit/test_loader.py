"""Order, shares, batches and workers: pure functions of the seed, and processes that end as they should."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.config import GraftError, UserError
from trainer.config.run import Augment, Data
from trainer.config.sources import open_source
from trainer.data import Batch, ImageDataset, Order, eval_batches, loader, mix, share, train_batches
from trainer.spec import InputSpec

AUGMENT = Augment(crop="pad", padding=2, flip=0.5, rotate=15, color=0.3, auto="rand", erase=0.3)
SPEC = InputSpec(3, 12, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(13):
        (root / "ab"[index % 2]).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (14, 17, 3), dtype=np.uint8)).save(root / "ab"[index % 2] / f"{index:02d}.png")
    return root


def files(root: Path, *, train: bool = True, seed: int = 5) -> ImageDataset:
    data = Data(train=f"folder:{root}", augment=AUGMENT)
    return ImageDataset(open_source(data.train), data, SPEC, train=train, seed=seed)


def digits(source: str = "digits:0-4/train", spec: InputSpec | None = None, *, train: bool = True, **keys: Any) -> ImageDataset:
    return ImageDataset(
        open_source(source), Data(train=source, **keys), spec or InputSpec(1, 8, (0.5,), (0.25,)), train=train, seed=3
    )


def steps(dataset: ImageDataset, **keys: Any) -> Iterator[list[Batch]]:
    standard = {"seed": 1, "start_step": 0, "steps": 5, "global_batch": 8, "micro_batch": 3, "rank": 0, "world": 1, "workers": 0}
    return train_batches(dataset, **{**standard, "pin": False, **keys})


def prints(batches: Iterator[list[Batch]]) -> list[list[str]]:
    """A hash of each micro-batch."""
    return [[digest(batch) for batch in group] for group in batches]


def digest(batch: Batch) -> str:
    return hashlib.sha256(
        b"".join(t.contiguous().numpy().tobytes() for t in (batch.images, batch.labels, batch.indices))
    ).hexdigest()


# --- order


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_a_permutation_drawn_from_seed_and_epoch(n: int, seed: int, epoch: int) -> None:
    order = Order(n, seed)
    whole = order.slice(epoch * n, (epoch + 1) * n)
    assert sorted(whole) == [(epoch, index) for index in range(n)]
    other = Order(n, seed)
    other.at((epoch + 3) * n)
    start = epoch * n + n // 3
    assert other.slice(start, start + n) == [other.at(p) for p in range(start, start + n)] == order.slice(start, start + n)
    assert other.slice(start, start) == []


def test_epochs_seeds_and_places_share_nothing() -> None:
    n = 1000
    seen = {tuple(i for _, i in Order(n, seed).slice(e * n, (e + 1) * n)) for seed in range(4) for e in range(4)}
    assert len(seen) == 16
    first = np.array([[Order(50, seed).at(0)[1] for seed in range(2000)]])
    counts = np.bincount(first[0], minlength=50)
    assert ((counts - 40) ** 2 / 40).sum() < 90  # chi-squared, 49 degrees of freedom: p about 0.0003
    table = np.array([[i for _, i in Order(20, 0).slice(e * 20, e * 20 + 20)] for e in range(2000)])
    for place in (0, 7, 19):
        counts = np.bincount(table[:, place], minlength=20)
        assert ((counts - 100) ** 2 / 100).sum() < 46


def test_the_order_is_for_ever() -> None:
    """Another version of a library must not change what a resumed run reads: these numbers may never change."""
    assert [i for _, i in Order(10, 0).slice(0, 20)] == [2, 9, 0, 3, 1, 5, 6, 4, 7, 8, 2, 3, 4, 8, 1, 7, 5, 0, 6, 9]
    assert (mix(0), mix(1, 2, 3), mix(12, 3)) == (4246866556266386882, 1517167407554927345, 2455815314775114142)


@given(values=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4), bit=st.integers(0, 69))
@settings(max_examples=60, deadline=None)
def test_mix_changes_half_of_its_bits(values: list[int], bit: int) -> None:
    assert 0 <= mix(*values) < 2**63
    changed = mix(values[0] ^ (1 << bit), *values[1:])
    assert 8 <= (mix(*values) ^ changed).bit_count() <= 55
    assert mix(*values) == mix(*values)
    assert mix(1, 23) != mix(12, 3)


# --- share


@given(global_batch=st.integers(1, 200), world=st.integers(1, 33), micro=st.integers(1, 70))
@settings(max_examples=200, deadline=None)
def test_shares_cover_the_batch_exactly(global_batch: int, world: int, micro: int) -> None:
    if world > global_batch:
        with pytest.raises(UserError, match=r"train\.global_batch"):
            share(global_batch, 0, world, micro)
        return
    cuts = [share(global_batch, rank, world, micro) for rank in range(world)]
    assert [i for rank in cuts for cut in rank for i in cut] == list(range(global_batch))
    sizes = [sum(map(len, rank)) for rank in cuts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    for rank in cuts:
        assert 1 <= min(map(len, rank)) <= max(map(len, rank)) <= micro
        assert max(map(len, rank)) - min(map(len, rank)) <= 1
        passes = -(-max(sizes) // micro)  # as many on every rank, where it has so many samples
        assert len(rank) == min(passes, sum(map(len, rank)))


# --- batches


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(root: Path, workers: int) -> None:
    assert prints(steps(files(root), workers=workers)) == prints(steps(files(root)))


def test_any_start_gives_the_same_rest(root: Path) -> None:
    whole = prints(steps(files(root)))
    for start in range(6):
        assert prints(steps(files(root), start_step=start)) == whole[start:]
    assert prints(steps(files(root), start_step=3, workers=2)) == whole[3:]
    assert len({text for group in whole for text in group}) == 15


@given(world=st.integers(1, 6), micro=st.integers(1, 8), start=st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_ranks_and_micro_batches_only_cut(root: Path, world: int, micro: int, start: int) -> None:
    (wanted, *_), *_ = steps(files(root), start_step=start, micro_batch=8)
    parts = [next(iter(steps(files(root), start_step=start, micro_batch=micro, rank=r, world=world))) for r in range(world)]
    flat = [batch for group in parts for batch in group]
    assert torch.equal(torch.cat([b.images for b in flat]), wanted.images)
    assert torch.equal(torch.cat([b.labels for b in flat]), wanted.labels)


def test_augmentation_depends_on_seed_epoch_and_sample_alone(root: Path) -> None:
    one, other = files(root), files(root, seed=6)
    same = one.fetch([(2, 4), (2, 5)])
    assert torch.equal(one.fetch([(2, 5), (2, 4)]).images[[1, 0]], same.images)
    assert not torch.equal(one.fetch([(3, 4), (3, 5)]).images, same.images)
    assert not torch.equal(other.fetch([(2, 4), (2, 5)]).images, same.images)
    plain = files(root, train=False)
    assert torch.equal(plain.fetch([(2, 4)]).images, plain.fetch([(9, 4)]).images)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_disturbs_no_generator(root: Path, workers: int) -> None:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    prints(steps(files(root), workers=workers))
    list(eval_batches(files(root, train=False), batch=4, rank=0, world=1, workers=workers, pin=False))
    digits(augment=AUGMENT.model_copy(update={"color": 0.0, "auto": "none"})).fetch([(0, 1)])
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_another_process_gives_the_same_bytes_and_ends_whatever_it_holds(root: Path) -> None:
    """It leaves by an error while a loader is still running: no worker may hold it up, and none may be left."""
    code = f"""
from pathlib import Path
import psutil
from tests.unit.test_loader import files, prints, steps
root = Path({str(root)!r})
print(prints(steps(files(root))))
batches = steps(files(root), steps=10**6, workers=2)
next(batches)
print(*[p.pid for p in psutil.Process().children()], flush=True)
raise SystemExit(7)
"""
    env = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    found, workers = done.stdout.splitlines()
    assert found == str(prints(steps(files(root))))
    assert done.returncode == 7
    assert len(workers.split()) == 2
    assert not any(psutil.pid_exists(int(pid)) for pid in workers.split())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_each_sample_once(root: Path, workers: int, world: int) -> None:
    dataset = files(root, train=False)
    seen: list[int] = []
    for rank in range(world):
        found = list(eval_batches(dataset, batch=4, rank=rank, world=world, workers=workers, pin=False))
        indices = [index for batch in found for index in batch.indices.tolist()]
        assert indices == list(range(rank, 13, world))
        assert all(len(batch.labels) == len(batch.images) <= 4 for batch in found)
        seen += indices
    assert sorted(seen) == list(range(13))
    assert list(eval_batches(dataset, batch=4, rank=13, world=14, workers=workers, pin=False)) == []


# --- digits


def test_digits_are_the_real_ones() -> None:
    from sklearn.datasets import load_digits

    real = load_digits()
    dataset = digits("digits", train=False)
    batch = dataset.fetch([(0, index) for index in range(1797)])
    assert (batch.labels.numpy() == real.target).all()
    assert np.abs(batch.images[:, 0].numpy() - real.images * 255 / 16).max() <= 0.5
    assert dataset.classes == tuple("0123456789")


def test_digits_resized_and_in_colour() -> None:
    spec = InputSpec(3, 32, (0.5,) * 3, (0.5,) * 3)
    batch = digits(spec=spec).fetch([(0, 3), (0, 3), (1, 7)])
    assert batch.images.shape == (3, 3, 32, 32)
    assert torch.equal(batch.images[:, 0], batch.images[:, 2])
    assert torch.equal(batch.images[0], batch.images[1])
    large = digits(spec=InputSpec(1, 512, (0.5,), (0.5,)))  # more than is held in memory: resized when fetched
    again = digits("digits:0-1/val", InputSpec(1, 512, (0.5,), (0.5,)))
    key = next(i for i, item in enumerate(large.listing.items) if item.label == 0)
    assert large.fetch([(0, key)]).images.shape == again.fetch([(0, 0)]).images.shape == (1, 1, 512, 512)
    varied = digits(augment=Augment(crop="pad", padding=1))
    assert not torch.equal(varied.fetch([(0, 3)] * 1).images, varied.fetch([(1, 3)]).images) or not torch.equal(
        varied.fetch([(0, 4)]).images, varied.fetch([(1, 4)]).images
    )
    assert not varied.cheap


# --- to the device


def test_normalised_on_the_device() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    batch = Batch(images, torch.arange(4), torch.arange(4), [("a", "b")]).to(torch.device("cpu"), SPEC)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    assert batch.images.dtype == torch.float32
    torch.testing.assert_close(batch.images.double(), (images.double() / 255 - mean) / std, rtol=1e-6, atol=2e-6)
    assert (batch.labels.tolist(), batch.bad) == ([0, 1, 2, 3], [("a", "b")])
    empty = Batch(images[:0], torch.arange(0), torch.arange(0)).to(torch.device("cpu"), SPEC)
    assert empty.images.shape == (0, 3, 5, 5)


# --- processes


def children() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


def test_close_leaves_no_worker(root: Path) -> None:
    before = children()
    batches = steps(files(root), steps=10**6, workers=2)
    next(batches)
    assert len(children()) == len(before) + 2
    started = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert children() == before
    assert time.monotonic() - started < 4.5  # torch gives a worker 5 s before it sends a signal
    list(steps(files(root), workers=2))
    list(eval_batches(files(root, train=False), batch=4, rank=0, world=1, workers=2, pin=False))
    assert children() == before


def test_no_process_for_what_lies_in_memory() -> None:
    before = children()
    batches = steps(digits(), workers=2)
    next(batches)
    assert children() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_workers_ignore_the_signals_that_stop_a_run(root: Path, number: signal.Signals) -> None:
    wanted = prints(steps(files(root), steps=30))
    before = children()
    batches = steps(files(root), steps=30, workers=2)
    found = prints(iter([next(batches)]))
    for process in children():
        if process not in before:
            process.send_signal(number)
    assert found + prints(batches) == wanted


def test_a_killed_worker_is_named(root: Path) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    before = children()
    batches = steps(files(root), steps=10**6, workers=2)
    next(batches)
    victim = next(p for p in children() if p not in before)
    victim.kill()
    with pytest.raises(GraftError, match=f"loader worker {victim.pid} was ended by SIGKILL; perhaps .* out of memory") as caught:
        for _ in batches:
            pass
    assert caught.value.code == 1
    assert children() == before
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_a_killed_worker_is_named_when_its_signal_comes_after_its_pipe_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's handler then raises while the end of the worker is waited for."""

    def late(sentinels: list[int], timeout: float) -> list[int]:
        raise RuntimeError("DataLoader worker is killed by signal: Killed.")

    monkeypatch.setattr(loader, "wait", late)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        worker.start()
    worker.kill()
    worker.join()
    assert f"loader worker {worker.pid} was ended by SIGKILL" in str(loader._explained(EOFError(), [worker]))


def test_workers_die_with_their_rank(root: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
import psutil
from tests.unit.test_loader import files, steps
batches = steps(files(Path({str(root)!r})), steps=10**6, workers=2)
next(batches)
print(*[p.pid for p in psutil.Process().children()], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
        process.wait()
    assert len(workers) == 2
    until = time.monotonic() + 2
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_more_workers_than_cores_and_samples(root: Path) -> None:
    assert prints(steps(files(root), steps=2, workers=9)) == prints(steps(files(root), steps=2))


class Broken(ImageDataset):
    def fetch(self, keys: Any) -> Batch:
        raise self.error

    error: Exception = UserError("the second row is wrong; write another")


@pytest.mark.parametrize("workers", [0, 1])
def test_messages_come_through_and_bugs_keep_their_traceback(root: Path, workers: int) -> None:
    data = Data(train=f"folder:{root}")
    broken = Broken(open_source(data.train), data, SPEC, train=True, seed=0)
    with pytest.raises(UserError, match=r"^the second row is wrong; write another$"):
        next(steps(broken, workers=workers))
    broken.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(steps(broken, workers=workers))


def test_too_many_ranks_are_refused_at_once(root: Path) -> None:
    with pytest.raises(UserError, match=r"train\.global_batch is 8 and there are 9 ranks"):
        steps(files(root), world=9)


def test_a_data_set_can_be_pickled(root: Path) -> None:
    dataset = files(root)
    assert digest(pickle.loads(pickle.dumps(dataset)).fetch([(0, 1)])) == digest(dataset.fetch([(0, 1)]))
