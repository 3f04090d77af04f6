"""Prior preservation: what stands beside each sample, what the network is asked of both, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.painter import photographs
from tests.trainers import run_file
from tests.unit.test_generators import latent_pipeline
from trainer.config import GraftError, UserError, load
from trainer.config.prior import Prior
from trainer.config.run import Data
from trainer.config.sources import open_source
from trainer.config.targets import Facts
from trainer.config.tasks.diffusion import Config
from trainer.data.companions import Accompanied
from trainer.data.dataset import ImageDataset
from trainer.describe import features
from trainer.drawing import Drawing
from trainer.fetch import fetch
from trainer.forecast import prepare
from trainer.priors import held_apart
from trainer.runtime import Runtime
from trainer.spec import Beside, InputSpec
from trainer.tasks.diffusion import Diffusion, build
from trainer.tasks.sampler import Plan

SPEC = InputSpec(1, 8, (0.5,), (0.5,))


def digits(which: str) -> ImageDataset:
    return ImageDataset(open_source(f"digits:{which}/val"), Data(train="digits:0-9"), SPEC, train=True, seed=3)


def test_each_companion_comes_as_often_as_any_other() -> None:
    few, many = digits("3"), digits("5-9")
    for samples, companions in ((few, many), (many, few)):
        beside = Accompanied(samples, companions, seed=5)
        n = len(samples)
        keys = [beside.companion((epoch, index)) for epoch in range(7) for index in range(n)]
        assert len(set(keys)) == len(keys), "no noise comes twice"
        counts = Counter(index for _, index in keys)
        assert len(counts) == min(len(keys), len(companions))
        assert max(counts.values()) - min([*counts.values(), *([0] if len(counts) < len(companions) else [])]) <= 1
        again = beside.companion((2 + (1 << 32), 4))
        assert again == (beside.companion((2, 4))[0] + (1 << 32), beside.companion((2, 4))[1])
    assert keys != [Accompanied(many, few, seed=6).companion((e, i)) for e in range(7) for i in range(n)]
    whole = beside.fetch([(0, 1), (3, 2)])
    assert whole.prior is not None
    assert whole.prior.labels.tolist() == [few.listing.items[beside.companion(key)[1]].label for key in ((0, 1), (3, 2))]
    alone = few.fetch([beside.companion((3, 2))])
    assert torch.equal(whole.prior.images[1], alone.images[0])


class Asked(nn.Module):
    """Says the noised image itself, and keeps what it was asked."""

    def forward(self, images: torch.Tensor, times: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        self.images, self.classes = images, classes
        return images


def task(**prior: Any) -> Diffusion:
    config = Config.model_validate({"prior": {"classes": ["3"], **prior} if prior else None, "drop": 0.0})
    found = build(config, Facts.plain([str(n) for n in range(5, 10)], [1] * 5))
    call = lambda network, images, times, told: network(images, times, told["classes"])  # noqa: E731
    found.bind(Beside(call, 1, 8, (1, 8)), seed=0)
    return found


def test_both_losses_come_of_one_pass_with_noise_of_their_own() -> None:
    made = task(data="digits:3")
    assert made.generator.classes == ("5", "6", "7", "8", "9", "3")
    samples = Accompanied(digits("5-9"), digits("5-9"), seed=0)
    batch = samples.fetch([(0, 0), (0, 1), (1, 2)]).to(torch.device("cpu"), SPEC)
    assert batch.prior is not None
    batch.prior.epochs, batch.prior.indices, batch.prior.images = batch.epochs, batch.indices, batch.images
    network = Asked()
    losses = made.losses(made.run(network, batch), batch)
    assert list(losses) == ["task", "prior"]
    assert [len(loss) for loss in losses.values()] == [3, 3]
    assert len(network.images) == 6
    assert not torch.isclose(network.images[:3], network.images[3:]).flatten(1).all(dim=1).any(), "the same key, other noise"
    assert network.classes.tolist() == [*batch.labels.tolist(), *batch.prior.labels.tolist()]
    batch.prior = None
    plain = task()
    assert torch.equal(plain.losses(plain.run(Asked(), batch), batch)["task"], losses["task"]), "the data's loss is what it was"


@pytest.mark.parametrize(
    ("condition", "prior", "said"),
    [
        ("class", {}, "prior.classes is missing"),
        ("class", {"prompts": ["a"]}, "prior.prompts goes with condition: text"),
        ("none", {"classes": ["a"]}, "prior.classes goes with condition: class"),
        ("text", {}, "prior.prompts is missing"),
        ("text", {"prompts": ["a"], "data": "folder:x"}, "with prior.data nothing is"),
        ("none", {"data": "split:0.1"}, "which is no source"),
        ("text", {"prompts": ["a", "b"], "images": 1}, "prior.images is 1, fewer than the 2"),
        ("class", {"classes": ["a", "a"]}, "a name comes twice"),
    ],
)
def test_what_does_not_go_together_is_refused(condition: str, prior: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config.model_validate({"kind": "diffusion", "condition": condition, "prior": prior})


def test_what_is_measured_is_not_learnt(tmp_path: Path) -> None:
    photographs(tmp_path / "own", 3, seed=0)
    own = open_source(f"folder:{tmp_path / 'own'}", looks_at="nothing")
    held_apart(own, open_source("digits:0/val"))
    with pytest.raises(UserError, match=r"3 of its 3 images are also in data.val"):
        held_apart(own, open_source(f"folder:{tmp_path}", looks_at="nothing"))


class Weights(Diffusion):
    """A generator whose image is its seed, and which keeps what it was asked."""

    lacks: int | None = None  # images at a time that do not fit

    def image(self) -> tuple[int, int]:
        return 1, 8

    def sample(self, network: Any, seeds: Any, classes: Any, plan: Plan, step: Any = None) -> torch.Tensor:
        if self.lacks is not None and len(seeds) >= self.lacks:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried")
        asked.append((list(seeds), plan.steps))
        return torch.stack([torch.full((1, 8, 8), seed + network.shade, dtype=torch.uint8) for seed in seeds])


asked: list[tuple[list[int], int]] = []


def drawing(folder: Path, *, resumed: bool, weights: int | None = 0, **more: Any) -> Drawing | None:
    """Draw six images, or what `more` says of them; without `weights` there are none to read."""
    prior = Prior.model_validate({"images": more.pop("images", 6), "classes": ["3"]})
    sections = {"kind": "diffusion", "prior": prior, "samples": {"steps": more.pop("steps", 3), "batch": more.pop("batch", 2)}}
    lacks = more.pop("lacks", None)
    assert not more
    config = Config.model_validate(sections)
    run = load(run_file(folder.parent)).model_copy(update={"task": config})
    made = Weights(config, ("5", "3"), (1, 1))
    made.bind(Beside(lambda *given: given[1], 1, 8, (1, 8)), seed=0)
    made.lacks = lacks
    runtime = Runtime(run.parallel, run.train, planned=None, uncompiled=None)
    found = Drawing(folder, run, prior, made, runtime, resumed=resumed, beside={})

    def network() -> Any:
        assert weights is not None, "the weights are looked at"
        network = nn.Linear(1, 1, bias=False)
        network.weight.data.fill_(weights)
        network.shade = weights  # type: ignore[assignment]
        report = SimpleNamespace(matched=["weight"], classes=["3"], source="x")
        return SimpleNamespace(network=network, fresh=(), report=report)

    asked.clear()
    if not (found.complete() and resumed):
        assert found.draw(network, lambda stage: None, lambda: False)
    return found


def test_what_a_run_learnt_of_is_kept(tmp_path: Path) -> None:
    """Settings that may change between attempts change no image; and where others are asked for none is lost."""
    folder, aside = tmp_path / "prior", tmp_path / "prior.1"
    with pytest.raises(GraftError, match=r"memory is too little to draw its images .*; write task.samples.batch=1"):
        drawing(folder, resumed=False, lacks=2)
    assert drawing(folder, resumed=False, steps=9) is not None
    digest = drawing(folder, resumed=False).known().digest  # type: ignore[union-attr]
    assert [steps for _, steps in asked] == [3, 3, 3], "before the first checkpoint, as is asked for"
    resumed = drawing(folder, resumed=True, weights=None, steps=5, batch=4)
    assert resumed is not None
    assert resumed.known().digest == digest

    lost = folder / "000003.png"
    before = lost.read_bytes()
    lost.write_bytes((folder / "000000.png").read_bytes())
    with pytest.raises(AssertionError, match="looked at"):
        drawing(folder, resumed=True, weights=None, steps=5, batch=4)
    assert lost.exists(), "nothing goes before there is something better"
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.png") if path != lost}
    again = drawing(folder, resumed=True, steps=5, batch=4)
    assert again is not None
    assert (asked, lost.read_bytes(), again.known().digest) == ([([2, 3], 3)], before, digest), "as it was drawn, in its batch"

    assert all(path.stat().st_mtime_ns == time for path, time in times.items()), "and nothing else is written"
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    lost.unlink()
    other = drawing(folder, resumed=True, weights=1)
    assert other is not None
    assert other.known().digest != digest
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == {n: kept[n] for n in kept if n != lost.name}
    drawing(folder, resumed=True, images=7)
    assert len(list((tmp_path / "prior.2").glob("*.png"))) == 6
    assert len(list(folder.glob("*.png"))) == 7


def test_the_prior_is_fetched_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "own", 3, seed=0)
    data = {"train": f"folder:{tmp_path}", "val": None, "normalize": "auto", "cache": {"kind": "features", "path": str(tmp_path)}}
    task = {"kind": "diffusion", "condition": "none", "vae": "pipeline", "prior": {"data": "digits:3/train"}}
    model = {"source": latent_pipeline(tmp_path / "pipe"), "args": {}, "adapt": {"in_channels": 1}}
    run = load(run_file(tmp_path / "run", task=task, data={**data, "augment": {}}, model=model))
    fetch(run)
    assert "task.prior.data: 147 samples" in capsys.readouterr().out
    plain = run.model_copy(update={"task": Config.model_validate({**task, "prior": None})})
    with_, without = (features(prepare(run, 1))["bytes"] for run in (run, plain))
    assert with_ == without // 3 * (3 + 147)
