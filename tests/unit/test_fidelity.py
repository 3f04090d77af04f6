"""How like the data generated images are: the figures are torch-fidelity's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from tests.network import small
from trainer import judges
from trainer.config import UserError
from trainer.config.fidelity import Fidelity
from trainer.config.tasks.diffusion import Config
from trainer.data.batch import Batch
from trainer.data.images import read
from trainer.rundir.metric import lower_is_better
from trainer.tasks.likeness import Likeness, LikenessMeasure, distances

CPU = torch.device("cpu")
OWN_LOADER = pytest.mark.filterwarnings("ignore")  # torch-fidelity loads with more processes than there may be cores


class Tiny(FeatureExtractorBase):  # type: ignore[misc]
    """Features that cost nothing, as torch-fidelity wants its extractors to be."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3 * 64, 24), nn.Linear(24, 6)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("wide", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "wide"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> torch.Tensor:
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wide = torch.relu(self.first(images.float().flatten(1) / 255))
        found = {"wide": wide, "logits": self.last(wide)}
        return tuple(found[name] for name in self.features_list)


class Judge:
    """The same features for graft."""

    name = "tiny"
    widths = {"wide": 24, "logits": 6}  # noqa: RUF012
    layers = {"fid": "wide", "kid": "wide", "precision_recall": "wide", "is": "logits"}  # noqa: RUF012

    def __init__(self) -> None:
        self._network = Tiny("tiny", ["wide", "logits"])

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return dict(zip(("wide", "logits"), self._network(images), strict=True))


def pictures(folder: Path, count: int, shift: int, size: int = 8) -> Path:
    drawn = np.random.default_rng(shift)
    folder.mkdir()
    for place in range(count):
        pixels = drawn.integers(0, 200, (size, size, 3)) + shift
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{place:03d}.png")
    return folder


def pixels(folder: Path) -> torch.Tensor:
    return torch.stack([read(path, 3, 10**6) for path in sorted(folder.glob("*.png"))])


def batches(images: torch.Tensor, *parts: list[int]) -> Iterator[Batch]:
    """Images of the data as an evaluation has them: normalised, some of them on this rank."""
    for part in parts:
        indices = torch.tensor(part)
        yield Batch(images[indices].float() / 127.5 - 1, torch.zeros(len(part), dtype=torch.int64), indices)


@OWN_LOADER
def test_the_figures_are_those_of_torch_fidelity_on_the_same_folders(tmp_path: Path) -> None:
    torch_fidelity.register_feature_extractor("tiny", Tiny)
    made, real = pictures(tmp_path / "made", 40, 20), pictures(tmp_path / "real", 60, 30)
    expected = torch_fidelity.calculate_metrics(
        input1=str(made), input2=str(real), feature_extractor="tiny", cuda=False, fid=True, kid=True, prc=True, isc=True,
        kid_subset_size=40, verbose=False, cache=False,
    )  # fmt: skip
    config = Fidelity(samples=40, measure=["fid", "kid", "precision_recall", "is"])
    likeness = Likeness(config, Judge(), [])
    images, wanted = pixels(made), pixels(real)
    ranks = []
    for rank in range(2):  # each rank sees its own, and the sum is over all
        measure = LikenessMeasure(likeness)
        mine = [list(range(rank, 60, 2))[:17], list(range(rank, 60, 2))[17:]]
        measure.refer(batches(wanted, *mine), 60)
        measure.make(lambda seeds, classes: images[torch.tensor([seed - 5 for seed in seeds])], 5, 7, rank, 2)
        ranks.append(measure)
    for one, other in zip(ranks[0].tensors(), ranks[1].tensors(), strict=True):
        one += other
    found, about = ranks[0].result()
    keys = {
        "fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean", "precision": "precision",
        "recall": "recall", "is": "inception_score_mean",
    }  # fmt: skip
    assert found == pytest.approx({name: expected[key] for name, key in keys.items()}, rel=1e-3, abs=1e-3)
    assert about["fidelity"] == {"samples": 40, "real": 60, "features": "tiny"}
    again = LikenessMeasure(likeness)
    again.make(lambda seeds, classes: images[torch.tensor([seed - 5 for seed in seeds])], 5, 7, 0, 1)
    assert again.result()[0] == pytest.approx(found), "the data is looked at once"


@OWN_LOADER
def test_inception_s_features_are_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the published one's format, with other values: the published one is not at hand."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(judges.INCEPTION).name
    config = Fidelity(samples=12, measure=["kid", "is"])
    with pytest.raises(UserError, match=r"Inception v3 of torch-fidelity is not here; run `graft fetch RUN` .* or put https://"):
        judges.judge(config, CPU)
    (need,) = judges.needs(config)
    assert (need.file, need.sha256) == (file, "6726825d")
    file.parent.mkdir(parents=True)
    torch.save({"x": print}, file)
    with pytest.raises(UserError, match="refused, nothing in it was run"):
        judges.judge(config, CPU)
    with monkeypatch.context() as patched:
        torch.manual_seed(0)
        torch.save({}, file)
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        random = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))
    torch.save(random.state_dict(), file)
    made, real = pictures(tmp_path / "made", 12, 20, 24), pictures(tmp_path / "real", 12, 30, 24)
    expected = torch_fidelity.calculate_metrics(
        input1=str(made), input2=str(real), cuda=False, kid=True, isc=True, kid_subset_size=12, verbose=False, cache=False,
        feature_extractor_weights_path=str(file),
    )  # fmt: skip
    judge = judges.judge(config, CPU)
    found = distances(config, judge(pixels(made)), judge(pixels(real)), judge.layers)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert found["is"] == pytest.approx(expected["inception_score_mean"], rel=1e-3)


def test_another_network_s_features_have_another_name(tmp_path: Path) -> None:
    weights = tmp_path / "small.pt"
    torch.manual_seed(0)
    network = small(dropout=0.0)
    torch.save(network.state_dict(), weights)
    source = f"python:{Path(__file__).resolve().parents[1] / 'network.py'}:small"
    features = {"source": source, "weights": str(weights), "adapt": {"in_channels": 1, "image_size": 8}}
    config = Fidelity(samples=10, measure=["fid", "kid", "precision_recall"], features=features)  # type: ignore[arg-type]
    assert config.names == ("fd_small", "kd_small", "precision_small", "recall_small")
    assert all(lower_is_better(f"val/{name}") for name in ("fd_small", "kd_small", "fid", "kid"))
    assert not lower_is_better("val/precision_small")
    judge = judges.judge(config, CPU)
    images = torch.randint(0, 256, (70, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        wanted = network.eval().trunk((images / 255 - 0.5) / 0.5).flatten(1)  # type: ignore[operator]
    torch.testing.assert_close(judge(images)["features"], wanted)
    assert judge.widths == {"features": 128}
    assert judge(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))["features"].shape == (1, 128)
    with pytest.raises(UserError, match="takes 1 channels and the images have 3"):
        judge(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_classes_come_as_often_as_in_the_data() -> None:
    likeness = Likeness(Fidelity(samples=10), Judge(), [10, 30, 60])
    assert likeness.classes() == [0] + [1] * 3 + [2] * 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 5, "measure": ["is"]}, "is needs 10 samples at least"),
        ({"samples": 50, "measure": ["fid", "fid"]}, "at most once"),
        ({"samples": 50, "measure": ["is"], "features": {"source": "timm:resnet18", "weights": "DEFAULT"}}, "asks Inception v3"),
        ({"samples": 50, "features": {"source": "timm:resnet18", "weights": "none"}}, "never trained tells nothing apart"),
    ],
)
def test_what_cannot_be_measured(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fidelity(**given)


def test_the_task_measures_what_it_is_asked_for() -> None:
    assert Config().measured() == ("loss",)
    config = Config(fidelity=Fidelity(samples=50, measure=["fid", "is", "precision_recall"]))
    assert config.measured() == ("loss", "fid", "is", "precision", "recall")
