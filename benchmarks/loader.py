"""Images a second of graft's loader beside torchvision's reference and timm's: `python -m benchmarks.loader --data DIR`.

DIR has a folder of photographs for each class. All arms do the same work with as many workers: read, decode, resize, crop by
chance, flip by chance, normalise to float32. An epoch is timed from its first batch to its last, so that the start of the workers
is in none; arms are interleaved (A B C … C B A) after a pass over the files that brings them into the system's cache, and the
plain loader stands in them twice, as a control. The first epoch from a decoded cache begins with an empty one, and filling it is
in its time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import torch

from trainer.config.run import Data, Parallel, Run, Train
from trainer.config.sources import Listing, open_splits
from trainer.data import ImageDataset
from trainer.data.dataset import BadCount
from trainer.data.loader import train_batches
from trainer.features.pictures import Decoded
from trainer.runtime import Runtime
from trainer.spec import InputSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Arm = Callable[[], float]


def paced(batches: Iterator[int]) -> float:
    """Images a second from the first batch on; each item is how many images a batch has."""
    next(batches)
    began, images = time.perf_counter(), 0
    for count in batches:
        images += count
    return images / (time.perf_counter() - began)


class Comparison:
    """The arms, for one set of files and one way to crop."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given, self._spec = given, InputSpec(3, given.size, MEAN, STD)
        self._runtime = Runtime(Parallel(device="cpu", threads=1), Train(), planned=None, uncompiled=None)
        self._listing: Listing = open_splits(self._run("none", None).data, 0).train
        self.steps = len(self._listing.items) // given.batch
        if self.steps < 3:
            raise SystemExit(f"{given.data} has {len(self._listing.items)} images: too few for batches of {given.batch}")
        self._kept: Decoded | None = None

    def _run(self, kind: str, folder: Path | None, decoder: str = "pillow") -> Run:
        given, resized = self._given, self._given.crop == "resized"
        cache: dict[str, Any] = {"kind": kind, **({} if folder is None else {"path": str(folder)})}
        cache |= {"side": given.resize} if resized and kind == "decoded" else {}
        data = Data.model_validate(
            {
                "train": f"folder:{Path(given.data).resolve()}", "resize_to": given.resize, "workers": given.workers,
                "decoder": decoder, "augment": {"crop": given.crop, "flip": 0.5}, "cache": cache, "min_per_class": 1,
            }
        )  # fmt: skip
        return Run.model_validate(
            {
                "name": "loader", "model": {"source": "torchvision:resnet18", "adapt": {"image_size": given.size}},
                "strategy": {"kind": "full"}, "data": data.model_dump(mode="json"), "optimizer": {"kind": "sgd", "lr": 0.1},
            }
        )  # fmt: skip

    def _dataset(self, run: Run) -> ImageDataset:
        return ImageDataset(self._listing, run.data, self._spec, train=True, seed=0)

    def _epoch(self, dataset: ImageDataset) -> float:
        batch = int(self._given.batch)
        batches = train_batches(
            dataset, seed=0, start_step=0, steps=self.steps, global_batch=batch, micro_batch=batch, rank=0, world=1,
            workers=self._given.workers, pin=False,
        )  # fmt: skip
        with closing(batches):
            return paced(len(group[0].to(torch.device("cpu"), self._spec).images) for group in batches)

    def plain(self, decoder: str = "pillow") -> float:
        """graft's loader from the files."""
        return self._epoch(self._dataset(self._run("none", None, decoder)))

    def first(self) -> float:
        """graft's decoded cache from nothing: filling it and an epoch, in images of that epoch a second."""
        with tempfile.TemporaryDirectory() as folder:
            run, began = self._run("decoded", Path(folder)), time.perf_counter()
            dataset = self._served(run)
            filled = time.perf_counter() - began
            images = float((self.steps - 1) * self._given.batch)
            return images / (filled + images / self._epoch(dataset))

    def later(self) -> float:
        """An epoch from it."""
        run = self._run("decoded", Path(self._given.kept))
        return self._epoch(self._served(run))

    def _served(self, run: Run) -> ImageDataset:
        dataset, decoded = self._dataset(run), Decoded(run, self._runtime, self._spec)
        decoded.open([dataset], BadCount(0), at=lambda stage: None, stop=lambda: False)
        decoded.serve(dataset)
        return dataset

    def torchvision(self) -> float:
        """torchvision's reference: ImageFolder, Pillow, float32 transforms, torch's loader."""
        from torchvision import transforms as v1
        from torchvision.datasets import ImageFolder

        size, resize = self._given.size, self._given.resize
        crop = [v1.RandomResizedCrop(size)] if self._given.crop == "resized" else [v1.Resize(resize), v1.RandomCrop(size)]
        change = v1.Compose([*crop, v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)])
        loader = torch.utils.data.DataLoader(
            ImageFolder(self._given.data, change), batch_size=self._given.batch, shuffle=True, num_workers=self._given.workers,
            drop_last=True,
        )  # fmt: skip
        return paced(len(images) for images, _ in loader)

    def timm(self) -> float:
        """timm's loader with the same changes (`rkrc`: resize, keep the ratio, crop by chance)."""
        from timm.data import create_dataset, create_loader

        resized = self._given.crop == "resized"
        loader = create_loader(
            create_dataset("", self._given.data), (3, self._given.size, self._given.size), self._given.batch, is_training=True,
            no_aug=False, color_jitter=None, auto_augment=None, re_prob=0.0, hflip=0.5, interpolation="bilinear", mean=MEAN,
            std=STD, num_workers=self._given.workers, crop_pct=self._given.size / self._given.resize, use_prefetcher=False,
            train_crop_mode="rrc" if resized else "rkrc", persistent_workers=False, pin_memory=False,
        )  # fmt: skip
        return paced(len(images) for images, _ in loader)

    def arms(self) -> dict[str, Arm]:
        """By name, the control last."""
        return {
            "graft, from the files": self.plain,
            "graft, data.decoder: torchvision": lambda: self.plain("torchvision"),
            "graft, first epoch of a decoded cache": self.first,
            "graft, later epochs of it": self.later,
            "torchvision's reference": self.torchvision,
            "timm's loader": self.timm,
            "graft, from the files (control)": self.plain,
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with a folder of JPEGs for each class")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="pixels that the network takes")
    parser.add_argument("--resize", type=int, default=256, help="short side before the crop; of what a cache keeps")
    parser.add_argument("--crop", choices=["random", "resized"], default="random")
    parser.add_argument("--rounds", type=int, default=3, help="each runs all arms forwards and backwards")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        given.kept = folder
        comparison = Comparison(given)
        arms = comparison.arms()
        for arm in arms.values():  # files into the system's cache, imports, and the cache of the later epochs
            arm()
        found: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(given.rounds):
            for name in (*arms, *reversed(arms)):
                found[name].append(arms[name]())
    base = median(found["torchvision's reference"])
    images = comparison.steps * given.batch
    print(f"{images} images an epoch, {given.workers} workers, {given.resize} to {given.size}, crop: {given.crop}")
    for name, rates in found.items():
        low, high = min(rates), max(rates)
        print(
            f"  {name:<40} {median(rates):9,.0f} images/s ({low:,.0f} to {high:,.0f})  {median(rates) / base:6.2f} x torchvision"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
