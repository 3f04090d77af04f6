"""Pairs of pictures: read, matched, made of photographs, changed alike; refused where half of one is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from tests.painter import photographs
from trainer.config import Run, UserError
from trainer.config.pairs import Edges, Grey, Masked, Small
from trainer.config.sources import open_source, open_splits
from trainer.data import images
from trainer.data.images import BadImageError
from trainer.data.pairs import PairDataset, dataset_of, derive, loaded
from trainer.pixels import coloured
from trainer.spec import InputSpec

SPEC = InputSpec(3, 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AUGMENT = {"flip": 0.5, "rotate": 30.0, "crop": "resized", "scale": [0.4, 1.0]}


def run(train: Path | str, task: dict[str, Any] | None = None, **data: Any) -> Run:
    return Run.model_validate({
        "name": "pairs", "task": {"kind": "translate", **(task or {})}, "model": {"source": "torchvision:resnet18"},
        "strategy": {"kind": "full"}, "data": {"train": str(train), **data}, "optimizer": {"kind": "adam", "lr": 1e-3},
    })  # fmt: skip


def dataset(one: Run, *, train: bool = True, spec: InputSpec = SPEC) -> PairDataset:
    found = dataset_of(one, open_splits(one.data, 0, looks_at="nothing").train, spec, train=train)
    assert isinstance(found, PairDataset)
    return found


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Photographs, and beside them their negatives."""
    photographs(tmp_path / "target", 4, 0)
    (tmp_path / "input" / "deep").mkdir(parents=True)
    (tmp_path / "target" / "deep").mkdir()
    (tmp_path / "target" / "003.png").rename(tmp_path / "target" / "deep" / "003.png")
    for file in tmp_path.glob("target/**/*.png"):
        ImageOps.invert(Image.open(file)).save(tmp_path / "input" / file.relative_to(tmp_path / "target").with_suffix(".bmp"))
    return tmp_path


def test_two_folders_are_changed_alike(folders: Path) -> None:
    one = run(f"pairs:{folders}", augment=AUGMENT)
    batch = dataset(one).fetch([(epoch, index) for epoch in range(3) for index in range(4)])
    given, target = batch.images[:, :3].int(), batch.images[:, 3:].int()
    inside = (target.sum(dim=1) + given.sum(dim=1)) > 600  # what a rotation brings in is black in both
    assert inside.float().mean() > 0.5
    assert ((given + target - 255).abs().amax(dim=1)[inside] <= 2).float().mean() > 0.97, "up to the rounding at the edges"
    assert not torch.equal(batch.images[:4], batch.images[4:8]), "another epoch, another change"
    again = dataset(one).fetch([(2, 3), (1, 1)])
    assert torch.equal(again.images, batch.images[[11, 5]]), "a function of epoch and sample"
    plain = dataset(one, train=False).fetch([(0, 3)]).images[0].int()
    assert torch.equal(plain[:3] + plain[3:], torch.full((3, 16, 16), 255))
    normal = batch.to(torch.device("cpu"), loaded(one, SPEC)).images
    assert torch.allclose(normal[:, 3:], target / 127.5 - 1, atol=1e-5)
    assert torch.allclose(normal[:, 0], (given[:, 0] / 255 - 0.485) / 0.229, atol=1e-5)


def test_side_by_side_and_rows_of_a_file(folders: Path, tmp_path: Path) -> None:
    both = Image.new("RGB", (32, 16))
    both.paste(Image.open(folders / "input" / "000.bmp"), (16, 0))
    both.paste(Image.open(folders / "target" / "000.png"), (0, 0))
    (tmp_path / "side").mkdir()
    both.save(tmp_path / "side" / "000.png")
    wanted = dataset(run(f"pairs:{folders}"), train=False).fetch([(0, 0)]).images
    side = run(f"folder:{tmp_path / 'side'}", {"pairs": {"kind": "side", "at": "right"}}, min_per_class=1)
    assert torch.equal(dataset(side, train=False).fetch([(0, 0)]).images, wanted)
    (tmp_path / "rows.csv").write_text("negative,photo\ninput/000.bmp,target/000.png\ninput/001.bmp,target/001.png\n")
    rows = run(f"pairs:{tmp_path}/rows.csv?input=negative&target=photo")
    assert torch.equal(dataset(rows, train=False).fetch([(0, 0)]).images, wanted)
    before = open_source(rows.data.train, looks_at="nothing").fingerprint()
    (tmp_path / "rows.csv").write_text("negative,photo\ninput/000.bmp,target/001.png\ninput/001.bmp,target/000.png\n")
    assert open_source(rows.data.train, looks_at="nothing").fingerprint() != before, "other targets are other data"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "input" / "001.bmp").unlink(), "target/001.png of 4 have no input in input"),
        (lambda f: (f / "target" / "001.png").rename(f / "target" / "00l.png"), "input/001.bmp of 4 have no target in target"),
        (lambda f: (f / "input" / "001.bmp").rename(f / "input" / "000.png"), "differ in their endings alone"),
        (lambda f: (f / "target").rename(f / "photos"), "no folder 'target' in it"),
        (lambda f: (f / "rows.csv").write_text("input,target\na,\n"), "row 2: 'target' is empty: half of a pair is missing"),
        (lambda f: (f / "rows.csv").write_text("input,target\na,target/000.png\n"), "row 2: no such file: a"),
        (lambda f: (f / "rows.csv").write_text("input,photo\na,b\n"), "row 1: no column 'target'; it has input, photo"),
    ],
)
def test_missing_halves_are_named(folders: Path, change: Any, message: str) -> None:
    change(folders)
    source = folders / "rows.csv" if (folders / "rows.csv").exists() else folders
    with pytest.raises(UserError, match=message):
        open_source(f"pairs:{source}", looks_at="nothing")


def test_halves_of_another_shape_are_named(folders: Path) -> None:
    Image.new("RGB", (20, 16)).save(folders / "target" / "002.png")
    ((path, reason),) = dataset(run(f"pairs:{folders}"), train=False).fetch([(0, 2)]).bad
    assert path == str(folders / "input" / "002.bmp")
    assert reason == "16 x 16 pixels, and its target target/002.png 20 x 16: of another shape"
    Image.new("RGB", (32, 32), "white").save(folders / "target" / "002.png")  # a larger one of the same shape is one
    assert int(dataset(run(f"pairs:{folders}")).fetch([(0, 2)]).images[0, 3:].min()) == 255
    odd = run(f"folder:{folders / 'target'}", {"pairs": "side"}, resize="squash")
    Image.new("RGB", (21, 16)).save(folders / "target" / "002.png")
    reader: Any = dataset(odd)._inner._reader
    with pytest.raises(BadImageError, match="21 pixels wide: no two pictures side by side"):
        reader.read("002.png", 6, 10**6)


def test_the_decoder_of_the_data_reads_both_of_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("input", "target"):
        (tmp_path / name).mkdir()
        Image.effect_noise((16, 16), 80).convert("RGB").save(tmp_path / name / "0.jpg")
    asked, decode = list[str](), images._decode

    def decoded(file: Any, channels: int, most: int, decoder: Any) -> Any:
        asked.append(decoder)
        return decode(file, channels, most, decoder)

    monkeypatch.setattr(images, "_decode", decoded)
    batch = dataset(run(f"pairs:{tmp_path}", decoder="torchvision", min_per_class=1), train=False).fetch([(0, 0)])
    assert not batch.bad
    assert asked == ["torchvision"] * 2


def test_inputs_are_made_of_photographs(tmp_path: Path) -> None:
    generator = torch.Generator()
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[0, :, 8:] = 200
    grey = derive(Grey(), image, generator)
    assert grey.shape == (1, 16, 16)
    assert int(grey.max()) == round(200 * 0.299)
    assert torch.equal(coloured(grey, 3), grey.expand(3, -1, -1))
    assert torch.equal(coloured(image, 1), grey)
    small = derive(Small(factor=4), image, generator)
    assert small.shape == image.shape
    assert 0 < int(small[0, 8, 7]) < 200, "the edge is soft"
    flat = derive(Small(factor=4), torch.full_like(image, 77), generator)
    assert torch.equal(flat, torch.full_like(image, 77))
    edges = derive(Edges(), image, generator)
    assert int(edges[0, :, :4].min()) == int(edges[0, :, 12:].min()) == 255
    assert int(edges[0, 8, 8]) < 200
    masked = [derive(Masked(share=(0.25, 0.25)), torch.zeros_like(image), generator.manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(masked[0], masked[1])
    assert not torch.equal(masked[0], masked[2])
    assert 0.15 < float((masked[0][0] == 128).float().mean()) < 0.3

    photographs(tmp_path, 6, 0)
    data = dataset(run(f"folder:{tmp_path}", {"pairs": "masked"}))
    first, second, other = (data.fetch([key]).images for key in ((0, 1), (0, 1), (1, 1)))
    assert torch.equal(first, second), "a function of epoch and sample"
    assert torch.equal(first[:, 3:], other[:, 3:])
    assert not torch.equal(first[:, :3], other[:, :3])


@pytest.mark.parametrize(
    ("train", "task", "data", "message"),
    [
        ("folder:x", {}, {}, "task.pairs: given takes pairs:FOLDER"),
        ("pairs:x", {"pairs": "grey"}, {}, "says pairs itself; write task.pairs: given"),
        ("pairs:x", {}, {"augment": {"color": 0.2}}, "data.augment.color would change the two pictures of a pair"),
        ("pairs:x", {}, {"cache": "features"}, "features are not kept for task translate"),
        ("pairs:x", {"losses": ["l1", "l1"]}, {}, "write each once"),
        ("pairs:x", {"losses": ["perceptual"]}, {}, "the network is not said; write perceptual"),
        ("pairs:x", {"perceptual": {"features": {"source": "torchvision:vgg16", "weights": "DEFAULT"}}}, {}, "do not name it"),
        ("folder:x", {"pairs": {"kind": "masked", "share": [0.5, 0.1]}}, {}, "write two shares of the area"),
    ],
)
def test_what_does_not_go_together(train: str, task: dict[str, Any], data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(train, task, **data)
    assert run("folder:x", {"pairs": "grey"}, augment={"color": 0.2}).checkpoint.best == "val/psnr"
