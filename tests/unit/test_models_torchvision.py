"""Every classification architecture of torchvision: its head, its input, its sizes; the big ones in shapes alone."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import shutil
import socket
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from trainer import strategies
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model, Normalize
from trainer.config.strategies import head
from trainer.models import Built, build_model
from trainer.models.channels import channels_of
from trainer.models.probe import trace, width
from trainer.models.torchvision import fetch
from trainer.spec import Output

ALL = models.list_models(module=models)
# One of each family runs for real: image size for the forward pass.
SMALLEST = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "googlenet": 32, "inception_v3": 299,
    "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "regnet_y_400mf": 32, "resnet18": 32, "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32, "squeezenet1_1": 32, "swin_t": 32, "swin_v2_t": 32, "vit_b_16": 32,
}  # fmt: skip
AUX = {"googlenet": 2, "inception_v3": 1}
FIVE = ("ant", "bee", "cat", "dog", "eel")


def build(
    name: str, classes: tuple[str, ...] = FIVE, *, weights: str = "none", load: bool = True, seed: int = 0, **adapt: Any
) -> Built:
    args = adapt.pop("args", {})
    normalize = adapt.pop("normalize", "auto")
    config = Model(source=f"torchvision:{name}", weights=weights, args=args, adapt=Adapt(**adapt))
    return build_model(config, normalize, (Output("", classes),), seed, load_weights=load)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Parameters become shapes without memory as soon as a module gets them, so that the largest network is built in no time."""
    register = nn.Module.register_parameter

    def shaped(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta")))

    setattr(nn.Module, "register_parameter", shaped)  # noqa: B010
    try:
        yield
    finally:
        setattr(nn.Module, "register_parameter", register)  # noqa: B010


@pytest.mark.parametrize("name", ALL)
def test_every_architecture_gets_the_classes_and_channels_of_the_task(name: str) -> None:
    with without_values():
        built = build(name, in_channels=4)
    assert [width(built.network.get_submodule(h)) for h in built.head] == [5] * (1 + AUX.get(name, 0))
    strategies.apply(head.Config(), built.network, built.head, (), lambda amount: 0)
    assert {n.rpartition(".")[0] for n, _ in strategies.learning(built.network)} == set(built.head)


@pytest.mark.parametrize("name", [*SMALLEST, "maxvit_t"])
def test_the_head_is_what_depends_on_the_number_of_classes(name: str) -> None:
    extra = {"init_weights": True} if name in AUX else {}
    with without_values():
        built = build(name)
        other = dict(models.get_model(name, weights=None, num_classes=11, **extra).named_parameters())
    assert set(built.fresh) == {n for n, p in built.network.named_parameters() if p.shape != other[n].shape}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_of_a_family_runs_and_only_its_head_gets_gradients(name: str) -> None:
    size = SMALLEST[name]
    built = build(name, image_size=size, in_channels=1)
    strategies.apply(head.Config(), built.network, built.head, (), lambda amount: 0)
    strategies.train_mode(built.network)
    output = built.network(torch.randn(2, 1, size, size))
    outputs = list(output) if isinstance(output, tuple) else [output]
    assert [tuple(o.shape) for o in outputs] == [(2, 5)] * (1 + AUX.get(name, 0))
    torch.autograd.backward(torch.stack(outputs).logsumexp(-1).sum())
    touched = {n for n, p in built.network.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in built.network.named_parameters() if n.startswith(built.head)}
    frozen = [m for m in built.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in frozen)


def test_maxvit_runs_at_its_size_and_refuses_others() -> None:
    with without_values():
        built = build("maxvit_t", image_size=448)
        assert trace(built.network, 3, 448, training=False, meta=True).outputs[0].shape == (2, 5)
        assert built.network.get_submodule(built.head[0]).bias is None
    with pytest.raises(UserError, match=r"multiple of 224 .*300 = 1 x 224 \+ 76; write 224 or 448"):
        build("maxvit_t", image_size=300)


def test_new_parameters_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("squeezenet1_1", seed=7, in_channels=2)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build("squeezenet1_1", seed=7, in_channels=2)
    assert torch.equal(state, torch.get_rng_state())
    for (name, a), (_, b) in zip(first.network.state_dict().items(), second.network.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    other = build("squeezenet1_1", seed=8, in_channels=2)
    assert not torch.equal(first.network.get_parameter("classifier.1.weight"), other.network.get_parameter("classifier.1.weight"))


# --- published weights: a planted cache, and a download from a loopback server -----------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of torchvision's own names and form (a pickled state dict of 1000 classes), with random values."""
    folder = tmp_path_factory.mktemp("published")
    names = {"squeezenet1_1": {}, "shufflenet_v2_x0_5": {}, "googlenet": {"init_weights": True}}
    for name, args in names.items():
        torch.manual_seed(3)
        network = models.get_model(name, weights=None, **args)
        member = models.get_model_weights(name)["IMAGENET1K_V1"]
        torch.save(network.state_dict(), folder / Path(member.url).name)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Path) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.parent.mkdir(parents=True)
    shutil.copytree(published, checkpoints)
    return checkpoints


def stored(cache: Path, name: str) -> dict[str, torch.Tensor]:
    file = cache / Path(models.get_model_weights(name)["IMAGENET1K_V1"].url).name
    tensors: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return tensors


def test_cached_weights_load_bit_exact_with_a_new_head(cache: Path) -> None:
    built = build("shufflenet_v2_x0_5", weights="DEFAULT")
    given, state = stored(cache, "shufflenet_v2_x0_5"), built.network.state_dict()
    assert all(torch.equal(state[n], given[n]) for n in given if not n.startswith("fc."))
    assert set(built.fresh) == set(built.report.fresh) == {"fc.weight", "fc.bias"}
    assert built.report.source == "torchvision's ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert len(built.report.matched) == len(given) - 2
    assert built.spec.mean == (0.485, 0.456, 0.406)
    assert built.spec.image_size == 224


def test_a_build_without_reading_has_the_same_names_shapes_and_spec(cache: Path) -> None:
    full_, shapes = (build("shufflenet_v2_x0_5", weights="DEFAULT", load=load, in_channels=2) for load in (True, False))
    assert {n: t.shape for n, t in full_.network.state_dict().items()} == {
        n: t.shape for n, t in shapes.network.state_dict().items()
    }
    assert (full_.spec, full_.head, full_.fresh) == (shapes.spec, shapes.head, shapes.fresh)


def test_the_published_head_is_kept_for_the_published_classes_only(cache: Path) -> None:
    categories = tuple(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"])
    kept = build("squeezenet1_1", categories, weights="IMAGENET1K_V1")
    assert torch.equal(kept.network.state_dict()["classifier.1.weight"], stored(cache, "squeezenet1_1")["classifier.1.weight"])
    assert kept.fresh == ()
    others = tuple(f"class {i}" for i in range(1000))
    assert build("squeezenet1_1", others, weights="IMAGENET1K_V1").fresh == ("classifier.1.weight", "classifier.1.bias")
    assert build("squeezenet1_1", others, weights="IMAGENET1K_V1", head="keep").fresh == ()
    assert build("squeezenet1_1", categories, weights="IMAGENET1K_V1", head="new").fresh != ()
    with pytest.raises(UserError, match="has 1000 classes and the task has 5"):
        build("squeezenet1_1", weights="IMAGENET1K_V1", head="keep")
    with pytest.raises(UserError, match="no trained head"):
        build("squeezenet1_1", head="keep")


def test_one_channel_gives_what_the_grey_picture_gave_in_three(cache: Path) -> None:
    colour = build("squeezenet1_1", weights="DEFAULT", normalize="half")
    grey = build("squeezenet1_1", weights="DEFAULT", normalize="half", in_channels=1)
    assert grey.report.adapted == ["features.0.weight: 3 input channels summed into 1"]
    assert "features.0.weight" not in grey.fresh
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = colour.network.eval()(image.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.network.eval()(image), expected, atol=1e-5, rtol=1e-5)
    assert build("squeezenet1_1", weights="DEFAULT", in_channels=1).spec.mean == (0.449,)


def test_more_channels_repeat_the_filters_at_the_same_scale() -> None:
    weight = torch.randn(4, 3, 2, 2)
    six = channels_of(weight, 6)
    torch.testing.assert_close(six, torch.cat([weight, weight], 1) / 2)
    torch.testing.assert_close(channels_of(weight, 2), weight[:, :2] * 1.5)
    assert channels_of(weight, 4).shape == (4, 4, 2, 2)


def test_googlenet_drops_untrained_heads_and_takes_pixels_from_minus_one_to_one(cache: Path) -> None:
    built = build("googlenet", weights="IMAGENET1K_V1")
    assert built.head == ("fc",)
    assert (built.spec.mean, built.spec.std) == ((0.5,) * 3, (0.5,) * 3)
    assert vars(built.network)["transform_input"] is False
    with_aux = build("googlenet", weights="IMAGENET1K_V1", args={"aux_logits": True})
    assert with_aux.head == ("fc", "aux2.fc2", "aux1.fc2") or with_aux.head == ("fc", "aux1.fc2", "aux2.fc2")
    assert "aux1.conv.conv.weight" in with_aux.fresh
    # The same as torchvision's own pretrained network, which turns ImageNet-normalised pixels into [-1, 1] itself.
    theirs = models.googlenet(weights="IMAGENET1K_V1").eval()
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    categories = tuple(models.GoogLeNet_Weights.IMAGENET1K_V1.meta["categories"])
    ours = build("googlenet", categories, weights="IMAGENET1K_V1").network.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours((pixels - 0.5) / 0.5), theirs((pixels - mean) / std), atol=1e-4, rtol=1e-4)


def test_a_file_with_the_published_name_counts_as_published(published: Path) -> None:
    file = next(published.glob("squeezenet*"))
    built = build("squeezenet1_1", tuple(f"class {i}" for i in range(1000)), weights=str(file))
    assert built.fresh == ("classifier.1.weight", "classifier.1.bias")
    assert built.spec.image_size == 224


@dataclass
class Server:
    """A loopback server of weights: `right` carries its own hash in its name, `wrong` another."""

    url: str
    right: str
    wrong: str
    requests: list[str]


@pytest.fixture
def server(published: Path, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    file = next(published.glob("squeezenet*"))
    right = f"squeezenet1_1-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    wrong = "squeezenet1_1-00000000.pth"
    for name in (right, wrong):
        shutil.copy(file, folder / name)
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, format: str, *args: Any) -> None:
            if "GET" in str(args[0]):
                requests.append(str(args[0]).split()[1])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{httpd.server_port}", right, wrong, requests)
        finally:
            httpd.shutdown()
            thread.join()


def redirect(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(type(models.SqueezeNet1_1_Weights.DEFAULT), "url", url)


def test_weights_are_downloaded_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    redirect(monkeypatch, f"{server.url}/{server.right}")
    assert len(build("squeezenet1_1", weights="DEFAULT").report.matched) == 50
    kept = tmp_path / "hub" / "checkpoints" / server.right
    assert kept.read_bytes() == (tmp_path / "served" / server.right).read_bytes()

    redirect(monkeypatch, f"{server.url}/{server.wrong}")
    with pytest.raises(UserError, match=r"is damaged .*invalid hash"):
        build("squeezenet1_1", weights="DEFAULT")
    assert [p.name for p in kept.parent.iterdir() if not p.name.startswith(".")] == [server.right]

    redirect(monkeypatch, f"{server.url}/squeezenet1_1-11111111.pth")
    with pytest.raises(UserError, match="404"):
        build("squeezenet1_1", weights="DEFAULT")


def test_ranks_that_share_a_cache_download_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    redirect(monkeypatch, f"{server.url}/{server.right}")
    with ThreadPoolExecutor(4) as ranks:
        files = list(ranks.map(lambda _: fetch("squeezenet1_1", models.SqueezeNet1_1_Weights.DEFAULT), range(4)))
    assert set(files) == {tmp_path / "hub" / "checkpoints" / server.right}
    assert server.requests == [f"/{server.right}"]


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("trainer.models.torchvision._STALL_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        redirect(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/squeezenet1_1-b8a52dc0.pth")
        with pytest.raises(UserError, match=r"could not be fetched .*timed out"):
            build("squeezenet1_1", weights="DEFAULT")
    assert socket.getdefaulttimeout() is None


def test_without_a_network_the_message_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    redirect(monkeypatch, "http://127.0.0.1:9/squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(UserError) as caught:
        build("squeezenet1_1", weights="DEFAULT")
    message = str(caught.value)
    for part in (
        "squeezenet1_1-b8a52dc0.pth",
        "http://127.0.0.1:9/",
        str(tmp_path / "hub" / "checkpoints"),
        "weights: none",
        "path",
    ):
        assert part in message
    monkeypatch.setenv("TORCH_HOME", "/proc/none")
    with pytest.raises(UserError, match="could not be fetched"):
        build("squeezenet1_1", weights="DEFAULT")


def test_a_damaged_file_in_the_cache_is_named(cache: Path) -> None:
    file = next(cache.glob("squeezenet*"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{file.name}: damaged"):
        build("squeezenet1_1", weights="DEFAULT")


def test_densenet_files_with_the_old_names_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def builder(*, weights: None, num_classes: int) -> nn.Module:
        network: nn.Module = models.DenseNet(4, (2, 2), 8, num_classes=num_classes)
        return network

    monkeypatch.setattr(models, "get_model_builder", lambda name: builder)
    theirs = builder(weights=None, num_classes=5)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", n): t for n, t in theirs.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save({n: t for n, t in old.items() if not n.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    built = build("densenet121", weights=str(tmp_path / "old.pth"))
    assert (built.report.fresh, built.report.left_over) == ([], [])
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in built.network.state_dict().items())


# --- positions ---------------------------------------------------------------------------------------------------------


def small_vit(image_size: int) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = models.VisionTransformer(image_size, 16, 1, 2, hidden_dim=16, mlp_dim=16, num_classes=5)
    return network


def test_positions_are_resampled_and_the_same_size_stays_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def builder(*, weights: None, num_classes: int, image_size: int) -> nn.Module:
        return small_vit(image_size)

    builder.__module__ = "torchvision.models.vision_transformer"
    monkeypatch.setattr(models, "get_model_builder", lambda name: builder)
    pretrained = small_vit(64)
    nn.init.normal_(pretrained.get_parameter("heads.head.weight"))  # torchvision begins with zeros
    torch.save(pretrained.state_dict(), tmp_path / "vit.pt")
    pretrained.eval()
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), size=(64, 64), mode="bilinear")
    larger = torch.nn.functional.interpolate(image, size=(96, 96), mode="bilinear")
    with torch.no_grad():
        expected = pretrained(image)
        same = build("vit_b_16", weights=str(tmp_path / "vit.pt"), image_size=64)
        assert torch.equal(same.network.eval()(image), expected)
        assert same.report.adapted == []
        other = build("vit_b_16", weights=str(tmp_path / "vit.pt"), image_size=96)
        assert other.report.adapted == ["encoder.pos_embedding: position embeddings resampled from 4 x 4 to 6 x 6"]
        got = other.network.eval()(larger)
    assert torch.nn.functional.cosine_similarity(got, expected).item() > 0.9


def test_sizes_that_cannot_be_are_refused_with_what_can() -> None:
    with pytest.raises(UserError, match=r"multiple of 16 \(its patches\), and 225 = 14 x 16 \+ 1; write 224 or 240"):
        build("vit_b_16", image_size=225)
    with without_values():
        with pytest.raises(UserError, match=r"128 x 128 pixels in training, .*auxiliary.*smallest that it takes is 299"):
            build("inception_v3", image_size=128)
        with pytest.raises(UserError, match=r"64 x 64 pixels .*smallest that it takes is 75"):
            build("inception_v3", image_size=64, args={"aux_logits": False})


# --- names and settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet51", "none", "did you mean 'resnet50'"),
        ("fasterrcnn_resnet50_fpn", "none", "a network for detection"),
        ("fcn_resnet50", "none", "a network for segmentation"),
        ("r3d_18", "none", "a network for video"),
        ("quantized_resnet18", "none", "a network for quantization"),
        ("resnet18", "IMAGENET1K_V2", "did you mean 'IMAGENET1K_V1'"),
        ("resnet18", "imagenet", "IMAGENET1K_V1"),
        ("resnet18", "None", "'none'"),
        ("resnet18", "/nowhere/x.pt", "no such weights file"),
        ("resnet18", "/nowhere/x.onnx", "weights are read from"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, weights=weights)


def test_arguments_go_to_the_architecture_and_wrong_ones_are_refused() -> None:
    dropout = build("squeezenet1_1", args={"dropout": 0.25}).network.get_submodule("classifier.0")
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.25
    with pytest.raises(UserError, match=r"does not take model.args"):
        build("squeezenet1_1", args={"droppout": 0.25})
    with pytest.raises(UserError, match="follows from the data"):
        build("squeezenet1_1", args={"num_classes": 7})
    with pytest.raises(UserError, match=r"no module 'classifier.9'; did you mean 'classifier"):
        build("squeezenet1_1", head_module="classifier.9")
    with pytest.raises(UserError, match=r"is a Sequential, .*it holds classifier.1"):
        build("squeezenet1_1", head_module="classifier")
    assert build("squeezenet1_1", head_module="classifier.1").head == ("classifier.1",)


def test_normalisation() -> None:
    def spec(**kw: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        with without_values():
            built = build("squeezenet1_1", **kw)
        return built.spec.mean, built.spec.std

    assert spec() == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert spec(in_channels=1) == ((0.5,), (0.5,))
    assert spec(in_channels=1, normalize="imagenet") == ((0.449,), (0.226,))
    assert spec(normalize="half") == ((0.5,) * 3, (0.5,) * 3)
    assert spec(in_channels=2, normalize="none") == ((0.0, 0.0), (1.0, 1.0))
    assert spec(in_channels=1, normalize=Normalize(mean=[0.1], std=[0.2])) == ((0.1,), (0.2,))
    with pytest.raises(UserError, match="2 means"):
        spec(normalize=Normalize(mean=[0.1, 0.1], std=[0.2, 0.2]))


def test_building_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in AUX:
            with without_values():
                build(name)
