"""Features of a frozen first part, kept and read: the same training as without, however it is split, stopped or damaged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.faults.test_disk import fill, mounted
from tests.trainers import NETWORK, Rank, Zygote, points, run_file, same
from trainer.rundir import RunDir

KILLED, REQUEUE = -9, 75
STILL = {"crop": "none", "flip": 0.0}
CHANGED = {"crop": "pad", "padding": 1, "flip": 0.5}


def file(folder: Path, cache: Any = "features", **sections: Any) -> Path:
    """A run of the tests' deep network whose trunk is frozen, with its features kept beside it."""
    strategy, args = sections.pop("strategy", {"kind": "head"}), sections.pop("args", {})
    cache = {"kind": cache} if isinstance(cache, str) else cache
    kept = {"augment": STILL, **sections.pop("data", {}), "cache": {"path": str(folder / "kept"), **cache}}
    train = {"steps": 20, **sections.pop("train", {})}
    path = run_file(folder, model={"source": f"python:{NETWORK}:deep", "args": args}, data=kept, train=train, **sections)
    run = {**json.loads(path.read_text()), "strategy": strategy}  # which `run_file` would mix with its own
    path.write_text(json.dumps(run))
    return path


def curve(folder: Path) -> list[float]:
    """Every loss, of training and of validation, in their order."""
    return [p[key] for p in points(folder / "run") for key in ("train/loss", "val/loss") if key in p]


def log(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted((folder / "run" / "log").glob("attempt-*-rank-00000.log")))


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "kept").glob("*/*.rows"))


@pytest.fixture(scope="module")
def straight(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of runs that nobody disturbed, by their settings; each trained once."""
    made: dict[str, Path] = {}

    def get(cache: Any = "features", world: int = 1, **sections: Any) -> Path:
        key = json.dumps([cache, world, sections], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("straight")
            assert zygote.run(file(made[key], cache, **sections), made[key], world=world) == [0] * world
        return made[key]

    return get


@pytest.mark.parametrize(
    ("world", "sections"),
    [
        (1, {}),
        (
            2,
            {"strategy": {"kind": "blocks", "last": 1}, "args": {"norm": False}, "train": {"global_batch": 25, "micro_batch": 4}},
        ),
        (2, {"strategy": {"kind": "gradual", "every": "8 steps", "limit": 2}, "args": {"norm": False}}),
        (1, {"train": {"precision": "bf16"}, "data": {"val": "split:0.2", "sampling": {"kind": "balanced"}}}),
        (1, {"optimizer": {"kind": "schedule_free", "lr": 1e-3}, "schedule": {"kind": "constant"}, "train": {"ema": None}}),
    ],
    ids=["head", "last unit, accumulated", "gradual", "bf16, balanced", "schedule-free"],
)
def test_the_losses_are_those_of_the_images(straight: Callable[..., Path], world: int, sections: dict[str, Any]) -> None:
    features, images = straight("features", world, **sections), straight("none", world, **sections)
    assert curve(features) == pytest.approx(curve(images), abs=1e-5)
    assert len(set(curve(features))) > 20, "they move"
    assert "features: " in log(features)
    assert kept(features)
    assert not kept(images)


def test_one_rank_learns_what_two_do(straight: Callable[..., Path]) -> None:
    sections = {"args": {"norm": False, "dropout": 0.0}}
    assert curve(straight("features", 1, **sections)) == pytest.approx(curve(straight("features", 2, **sections)), abs=1e-5)


def test_views_are_the_changed_copies_of_the_first_epochs(straight: Callable[..., Path]) -> None:
    """75 samples: 20 steps of 24 are 6.4 epochs."""
    few = {"data": {"augment": CHANGED, "per_class": 15}, "evaluate": {"every": "1 epoch"}}
    images = straight("none", **few)
    first = 2 * 5 * 15 // 24
    losses = [curve(straight({"views": views}, **few)) for views in (2, 7)]
    assert losses[1] == pytest.approx(curve(images), abs=1e-5), "as many views as there are epochs: nothing is the same twice"
    train = [
        [p["train/loss"] for p in points(folder / "run") if "train/loss" in p]
        for folder in (straight({"views": 2}, **few), images)
    ]
    assert train[0][:first] == pytest.approx(train[1][:first], abs=1e-5)
    assert train[0][first + 1 :] != pytest.approx(train[1][first + 1 :], abs=1e-5), "then the first copies come again"


@pytest.mark.parametrize(
    ("world", "point"),
    [
        (1, "features-begun"),
        (1, "features-synced"),
        (2, "features-renamed"),
        (1, "features-computed@2"),
        (2, "features-computed@2"),
    ],
)
def test_killed_while_they_are_computed(
    trainers: Zygote, straight: Callable[..., Path], tmp_path: Path, point: str, world: int
) -> None:
    constants = {"trainer.features.fill._FLUSH": 0.0}  # a file a pass
    run = file(tmp_path, data={"augment": CHANGED}, cache={"views": 2})
    ranks = trainers.start(run, tmp_path, world=world, fault=f"{point}:{world - 1}=kill", constants=constants)
    assert [rank.wait() for rank in ranks][world - 1] == KILLED
    before = {path.name: path.stat().st_mtime_ns for path in kept(tmp_path)}
    assert trainers.run(run, tmp_path, world=world) == [0] * world
    same(tmp_path / "run", straight({"views": 2}, world, data={"augment": CHANGED}) / "run")
    assert {path.name: path.stat().st_mtime_ns for path in kept(tmp_path)}.items() >= before.items(), "what was there stays"
    assert not list((tmp_path / "kept").glob("*/.tmp-*"))


@pytest.mark.parametrize("world", [1, 2])
def test_killed_in_the_training_with_and_without_what_was_kept(
    trainers: Zygote, straight: Callable[..., Path], tmp_path: Path, world: int
) -> None:
    run = file(tmp_path, strategy={"kind": "blocks", "last": 1})
    assert trainers.run(run, tmp_path, world=world, fault="step@9:0=kill")[0] == KILLED
    made = {path.name for path in kept(tmp_path)}
    assert trainers.run(run, tmp_path, world=world, fault="step@16:0=kill")[0] == KILLED
    for path in kept(tmp_path):
        path.unlink()
    assert trainers.run(run, tmp_path, world=world) == [0] * world
    same(tmp_path / "run", straight("features", world, strategy={"kind": "blocks", "last": 1}) / "run")
    assert {path.name for path in kept(tmp_path)} == made, "computed again to the bit: the names are those of the content"


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _flip_head(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[65] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [_truncate, _flip, _flip_head, Path.unlink], ids=["truncated", "flipped", "ids flipped", "deleted"]
)
def test_damage_is_found_and_computed_again(
    trainers: Zygote, straight: Callable[..., Path], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = file(tmp_path)
    assert trainers.run(run, tmp_path, fault="step@9=kill") == [KILLED]
    whole = {path: path.read_bytes() for path in kept(tmp_path)}
    damage(max(whole, key=lambda path: len(whole[path])))
    assert trainers.run(run, tmp_path) == [0]
    same(tmp_path / "run", straight() / "run")
    assert {path: path.read_bytes() for path in kept(tmp_path)} == whole


def test_rows_of_another_network_are_noticed(trainers: Zygote, tmp_path: Path) -> None:
    """As if the key had missed something that makes another feature: whole files, with other numbers in them."""
    assert trainers.run(file(tmp_path / "one"), tmp_path / "one") == [0]
    for samples in (723, 178):  # of the training, of the validation
        other = tmp_path / str(samples)
        shutil.copytree(tmp_path / "one" / "kept", other / "kept")
        damaged = 0
        for path in kept(other):
            content = path.read_bytes()
            rows = int.from_bytes(content[8:16], "little")
            if rows == samples:
                start = len(content) - rows * 8 * 4
                changed = content[:start] + (np.frombuffer(content[start:], np.float32) * np.float32(1.5)).tobytes()
                path.unlink()
                path.with_name(f"{hashlib.sha256(changed).hexdigest()}.rows").write_bytes(changed)
                damaged += 1
        assert damaged == 1
        assert trainers.run(file(other), other) == [3]
        assert "are not those of this network and these images; remove that folder" in trainers.started[-1].text()


def _stopped(rank: Rank) -> None:
    deadline = time.monotonic() + 40
    while psutil.Process(rank.pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, rank.text()
        time.sleep(0.02)


def _wait_for(text: str, rank: Rank) -> None:
    deadline = time.monotonic() + 40
    while text not in rank.text():
        assert time.monotonic() < deadline, rank.text()
        time.sleep(0.02)


@pytest.mark.parametrize("world", [1, 2])
def test_a_signal_ends_the_computing_and_the_next_start_goes_on(
    trainers: Zygote, straight: Callable[..., Path], tmp_path: Path, world: int
) -> None:
    run = file(tmp_path, data={"augment": CHANGED}, cache={"views": 2})
    ranks = trainers.start(run, tmp_path, world=world, fault=f"features-computed@3:{world - 1}=usr")
    # torchrun would report every other exit code as a crash: with several ranks the marker speaks
    assert [rank.wait() for rank in ranks] == [REQUEUE if world == 1 else 0] * world
    marker = RunDir(tmp_path / "run").marker()
    assert marker is not None
    assert marker.state == "REQUEUE"
    assert kept(tmp_path), "what was computed is kept"
    assert trainers.run(run, tmp_path, world=world) == [0] * world
    same(tmp_path / "run", straight({"views": 2}, world, data={"augment": CHANGED}) / "run")


def test_two_runs_at_once_compute_them_once(trainers: Zygote, straight: Callable[..., Path], tmp_path: Path) -> None:
    """The second waits for the first, which is stopped (and so goes on holding its turn); then both read the same files."""
    shared = {"path": str(tmp_path / "kept")}
    one, two = (file(tmp_path / name, shared | {"kind": "features"}) for name in ("one", "two"))
    (first,) = trainers.start(one, tmp_path / "one", fault="features-computed@8=stop")
    _stopped(first)
    (second,) = trainers.start(two, tmp_path / "two")
    _wait_for(f"features are computed by run (process {first.pid} on", second)
    first.send(signal.SIGCONT)
    assert [first.wait(), second.wait()] == [0, 0]
    for name in ("one", "two"):
        same(tmp_path / name / "run", straight() / "run")
    computed = [int(count) for name in ("one", "two") for count in re.findall(r"(\d+) samples in", log(tmp_path / name))]
    assert sorted(computed) == [178, 723], "whoever did it, once"


def test_the_one_that_waits_goes_on_when_the_other_dies_or_hangs(
    trainers: Zygote, straight: Callable[..., Path], tmp_path: Path
) -> None:
    shared = {"kind": "features", "path": str(tmp_path / "kept")}
    for name, end, timeout in (("dies", signal.SIGKILL, 30), ("hangs", signal.SIGSTOP, 2)):
        folder = tmp_path / name
        shared["path"] = str(folder / "kept")
        one, two = (file(folder / n, shared, parallel={"timeout": timeout}) for n in ("one", "two"))
        (first,) = trainers.start(one, folder / "one", fault="features-computed@8=stop")
        _stopped(first)
        (second,) = trainers.start(two, folder / "two")
        _wait_for("features are computed by", second)
        first.send(end)
        assert second.wait() == 0
        assert curve(folder / "two") == curve(straight())


def test_a_full_disk_costs_the_features_and_not_the_training(
    trainers: Zygote, straight: Callable[..., Path], tmp_path: Path
) -> None:
    """The room was there when it was looked for, and is taken by somebody else while they are computed."""
    sections = {"strategy": {"kind": "blocks", "last": 1}, "args": {"norm": False}, "train": {"steps": 40}}
    with mounted(tmp_path / "small", "size=4m") as mine:
        assert mine, "this wants a file system of its own: run the tests as root, where a tmpfs may be mounted"
        ballast = tmp_path / "small" / "ballast"
        for kind, code in (("auto", 0), ("features", 3)):
            folder = tmp_path / kind
            run = file(folder, {"kind": kind, "path": str(tmp_path / "small"), "max_gb": 1}, **sections)
            constants = {"trainer.features.choose._WORK": 0.0, "trainer.features.fill._FLUSH": 0.0}
            (rank,) = trainers.start(run, folder, constants=constants, fault="features-computed@3=stop")
            _wait_for("features at 'units.2'", rank)
            _stopped(rank)
            fill(ballast, rank, mine)
            rank.send(signal.SIGCONT)
            assert rank.wait() == code, rank.text()
            assert "No space left" in rank.text()
            assert not list((tmp_path / "small").glob("*/*.rows")), "the room is given back"
            ballast.unlink()
    assert "data.cache: features, and they cannot be kept" in rank.text()
    assert curve(tmp_path / "auto") == pytest.approx(curve(straight("none", **sections)), abs=1e-5)


def test_where_there_is_no_room_that_is_said_first(trainers: Zygote, tmp_path: Path) -> None:
    run = file(tmp_path, {"max_gb": 1e-6, "kind": "features"})
    assert trainers.run(run, tmp_path) == [3]
    assert "they take 23.1 kB, more than data.cache.max_gb 1e-06" in trainers.started[-1].text()
    assert not kept(tmp_path)
    (tmp_path / "file").touch()
    run = file(tmp_path / "no folder", {"path": str(tmp_path / "file" / "kept"), "kind": "features"})
    assert trainers.run(run, tmp_path / "no folder") == [3]
    assert "Not a directory" in trainers.started[-1].text()


def test_a_folder_that_another_rank_does_not_see_is_refused(
    trainers: Zygote, straight: Callable[..., Path], tmp_path: Path
) -> None:
    """Each rank has a home of its own, as on nodes without a shared one."""
    sections = {"args": {"norm": False}, "train": {"steps": 40}}
    constants, env = {"trainer.features.choose._WORK": 0.0}, {"XDG_CACHE_HOME": f"{tmp_path}/home-{{rank}}"}
    for kind, codes in (("features", [3, 3]), ("auto", [0, 0])):
        run = file(tmp_path / kind, {"kind": kind, "path": None}, **sections)
        ranks = trainers.start(run, tmp_path / kind, world=2, constants=constants, env=env)
        assert [rank.wait() for rank in ranks] == codes
        said = "".join(rank.text() for rank in ranks)
        assert re.search(f"does not see {tmp_path}/home-[01]/graft/features/", said)
        assert "name a folder that all nodes share as data.cache.path" in said
    assert curve(tmp_path / "auto") == pytest.approx(curve(straight("none", 2, **sections)), abs=1e-5)


def pictures(root: Path) -> Path:
    """Two classes of twelve pictures each, and as many to validate."""
    for part in ("train", "val"):
        for place in range(24):
            path = root / part / "ab"[place % 2] / f"{place:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 100 * (place % 2) + place).save(path)
    return root


def test_unreadable_pictures_are_skipped_as_without_features(trainers: Zygote, tmp_path: Path) -> None:
    world = 2
    root = pictures(tmp_path / "pictures")
    for name in ("train/a/02.png", "train/b/03.png", "val/a/04.png"):
        (root / name).write_bytes(b"no picture")
    data = {"train": f"folder:{root}/train", "val": f"folder:{root}/val", "max_bad": 3, "augment": STILL, "workers": 1}
    sections = {"data": data, "train": {"steps": 12, "global_batch": 10}, "evaluate": {"every": "6 steps"}}
    for cache in ("none", "features"):
        folder = tmp_path / cache
        assert trainers.run(file(folder, cache, **sections), folder, world=world) == [0] * world
    assert curve(tmp_path / "features") == pytest.approx(curve(tmp_path / "none"), abs=1e-5)
    details = [json.loads((tmp_path / name / "run/samples/evaluation.json").read_text()) for name in ("none", "features")]
    assert [d["samples"] for d in details] == [23, 23]
    assert details[0]["confusion"] == details[1]["confusion"]
    strict = file(tmp_path / "strict", data={**data, "max_bad": 0})
    codes = trainers.run(strict, tmp_path / "strict", world=world)
    assert codes == [2] * world
    assert any("the file is not an image" in rank.text() or "02.png" in rank.text() for rank in trainers.started[-world:])


def test_several_heads_with_losses_that_learn_themselves(trainers: Zygote, tmp_path: Path) -> None:
    """What is said of a sample besides its class comes with its features; the balance's parameters stand beside the network's."""
    root = pictures(tmp_path / "pictures") / "train"
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{place / 24}" for place, path in enumerate(sorted(root.glob("*/*.png")))
    ]
    (root / "said.csv").write_text("\n".join(["path,kind,size", *rows]) + "\n")
    source = f"csv:{root}/said.csv?image=path&label=kind&value=size"
    sections = {
        "task": {"kind": "multi"}, "data": {"train": source, "val": "split:0.25", "augment": STILL},
        "losses": {"balance": {"kind": "uncertainty"}}, "checkpoint": {"best": "val/loss"},
        "train": {"steps": 12, "global_batch": 8}, "evaluate": {"every": "6 steps"}, "args": {"dropout": 0.0, "norm": False},
    }  # fmt: skip
    found = {}
    for cache, world in (("none", 1), ("features", 1), ("features", 2)):
        folder = tmp_path / f"{cache}-{world}"
        assert trainers.run(file(folder, cache, **sections), folder, world=world) == [0] * world
        found[cache, world] = [
            value for p in points(folder / "run") for key, value in p.items() if key.startswith(("train/loss", "val/", "weight/"))
        ]
    assert "features: " in log(tmp_path / "features-1")
    assert len(found["none", 1]) > 12 * 3
    assert found["features", 1] == pytest.approx(found["none", 1], abs=1e-5)
    assert found["features", 2] == pytest.approx(found["none", 1], abs=1e-5)


def test_losses_that_look_at_the_images_keep_them(trainers: Zygote, tmp_path: Path) -> None:
    losses = {"add": {"held": {"kind": "features", "of": "start"}}}
    sections = {"strategy": {"kind": "blocks", "last": 1}, "losses": losses}
    assert trainers.run(file(tmp_path / "auto", "auto", **sections), tmp_path / "auto") == [0]
    assert "not kept: losses.add.held needs the images" in log(tmp_path / "auto")
    assert trainers.run(file(tmp_path / "asked", **sections), tmp_path / "asked") == [2]
    assert "losses.add.held needs the images" in trainers.started[-1].text()


def test_a_changed_picture_is_computed_again_and_the_others_are_not(trainers: Zygote, tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures")
    data = {"train": f"folder:{root}/train", "val": f"folder:{root}/val", "augment": STILL}
    sections = {"data": data, "train": {"steps": 4, "global_batch": 10}}

    def computed(name: str) -> list[str]:
        folder = tmp_path / name
        run = file(folder, {"kind": "features", "path": str(tmp_path / "kept")}, **sections)
        assert trainers.run(run, folder) == [0]
        return re.findall(r"(\d+) samples in", log(folder))

    assert computed("first") == ["24", "24"]
    assert computed("second") == []
    Image.new("L", (8, 8), 7).save(root / "train/a/02.png")
    assert computed("third") == ["1"]
