"""Sampling and mixing in real trainings: a stop in the middle of an epoch and another number of ranks change nothing."""

from __future__ import annotations

import gzip
import hashlib
import math
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.trainers import Zygote, points, run_file, same
from trainer.config.sources import open_source
from trainer.data.download import bring
from trainer.rundir import RunDir

DATA = {"sampling": {"kind": "balanced", "power": 0.5}, "mix": {"mixup": 0.4, "cutmix": 1.0}, "val": "fold:2/5",
        "train": "digits:0-4"}  # fmt: skip


def test_a_resume_in_mid_epoch_is_exact_and_ranks_only_round(zygote: Zygote, tmp_path: Path) -> None:
    # without the parts that see a rank's own samples together (BatchNorm) or draw by rank (dropout)
    model = {"args": {"norm": False, "dropout": 0.0}}
    file = run_file(tmp_path, data=DATA, train={"steps": 30}, model=model)
    assert zygote.run(file, tmp_path / "whole") == [0]
    assert zygote.run(file, tmp_path / "cut", fault="step@17=kill") == [-9]
    assert zygote.run(file, tmp_path / "cut") == [0]
    same(tmp_path / "cut" / "run", tmp_path / "whole" / "run")
    assert zygote.run(file, tmp_path / "two", world=2) == [0, 0]
    one, two = (
        [p["train/loss"] for p in points(tmp_path / name / "run") if "train/loss" in p] for name in ("whole", "two")
    )  # fmt: skip
    assert len(one) == len(two) == 30
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(one, two, strict=True))
    manifest = RunDir(tmp_path / "whole" / "run").read_json(RunDir(tmp_path / "whole" / "run").manifest)
    assert manifest["data"]["val"]["samples"] in (180, 181)


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_fetch_downloads_a_named_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own downloader, from a loopback address: hashes are checked, the second call finds everything here."""
    from torchvision import datasets

    there = tmp_path / "mirror"
    there.mkdir()
    resources = []
    for name, shape in (("train-images-idx3", (6, 28, 28)), ("train-labels-idx1", (6,)), ("t10k-images-idx3", (4, 28, 28)),
                        ("t10k-labels-idx1", (4,))):  # fmt: skip
        head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        packed = gzip.compress(head + (np.arange(math.prod(shape)) % 10).astype(np.uint8).tobytes())
        (there / f"{name}-ubyte.gz").write_bytes(packed)
        resources.append((f"{name}-ubyte.gz", hashlib.md5(packed).hexdigest()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(there)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    source = f"torchvision:MNIST?root={tmp_path}/data&split=test"
    try:
        bring(source)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [item.label for item in open_source(source).items] == [0, 1, 2, 3]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    bring(source)
