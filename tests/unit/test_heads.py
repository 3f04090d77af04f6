"""Heads of several layers, attention over what a trunk pools, and several heads on one trunk: what they compute, and where."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.unit.folders import bare
from trainer import strategies
from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.load import dump, learnt, load
from trainer.config.run import Model
from trainer.config.strategies import full, lora
from trainer.config.strategies import head as head_only
from trainer.models import Built, build_model
from trainer.models.base import Checkpoint
from trainer.models.fit import fit
from trainer.models.heads import Attention, Heads, Mlp, Skipped
from trainer.models.outputs import module_name
from trainer.models.probe import Anatomy, examine
from trainer.spec import Output

FIVE = (Output("", ("ant", "bee", "cat", "dog", "eel")),)
TWO = (Output("species", ("ant", "bee", "cat")), Output("hair color", ("red", "blue")))
ATTENTION: dict[str, Any] = {"layers": {"kind": "attention"}}
HEADER = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
NET = """
class Net(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)
    def forward(self, x):
        return self.fc(self.norm(self.pool(self.trunk(x)).flatten(1)))

def make(classes=5, width=8):
    return Net(classes, width)
"""


def build(
    source: str, outputs: tuple[Output, ...] = FIVE, *, weights: str = "none", load_weights: bool = True, **adapt: Any
) -> Built:
    settings = Adapt.model_validate({"image_size": 32, **adapt})
    return build_model(Model(source=source, weights=weights, adapt=settings), "auto", outputs, 0, load_weights=load_weights)


def net(one: Built) -> Any:
    """The network, whose parts are called by name."""
    return one.network


def own(folder: Path, body: str = NET) -> str:
    (folder / "net.py").write_text(HEADER + body)
    return f"python:{folder}/net.py:make"


def images(one: Built, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, one.spec.image_size, one.spec.image_size, generator=torch.Generator().manual_seed(0))


def attention(network: nn.Module) -> Attention:
    return next(module for module in network.modules() if isinstance(module, Attention))


# --- what they compute --------------------------------------------------------------------------------------------------


def test_several_heads_stand_side_by_side_in_the_order_of_the_outputs(tmp_path: Path) -> None:
    one = build(own(tmp_path), TWO)
    assert one.head == ("fc",)
    assert isinstance(net(one).fc, Heads)
    names = [name for name, _ in net(one).named_parameters() if name.startswith("fc.")]
    assert names == ["fc.species.weight", "fc.species.bias", "fc.hair_color.weight", "fc.hair_color.bias"]
    assert set(one.fresh) == set(names)
    network = net(one).eval()
    features: list[torch.Tensor] = []
    network.fc.register_forward_pre_hook(lambda module, given: features.append(given[0]))
    with torch.no_grad():
        answer = network(images(one))
        parts = [
            features[0] @ getattr(network.fc, name).weight.T + getattr(network.fc, name).bias
            for name in ("species", "hair_color")
        ]
    torch.testing.assert_close(answer, torch.cat(parts, 1))
    assert answer.shape == (2, 5)


def test_an_mlp_is_what_it_says() -> None:
    torch.manual_seed(0)
    head: Any = Mlp(6, 3, 4, 2, "tanh", True, 0.5, True).eval()
    x = torch.randn(5, 6)
    with torch.no_grad():
        hidden = x
        for index in (0, 4):
            layer, norm = head.hidden[index], head.hidden[index + 1]
            hidden = hidden @ layer.weight.T + layer.bias
            mean, deviation = hidden.mean(1, keepdim=True), hidden.var(1, unbiased=False, keepdim=True).add(1e-5).sqrt()
            hidden = torch.tanh((hidden - mean) / deviation * norm.weight + norm.bias)
        torch.testing.assert_close(head(x), hidden @ head.out.weight.T + head.out.bias)
    head.train()
    assert not torch.equal(head(x), head(x)), "dropout"


@pytest.mark.parametrize("first", [True, False])
def test_attention_is_torchs_multi_head_attention_with_one_learned_query(first: bool) -> None:
    torch.manual_seed(0)
    head = Attention(12, 5, 3, 0.0, True, "", True, first, 2, False).eval()
    nn.init.normal_(head.query)
    maps = torch.randn(4, 12, 3, 5)
    tokens = maps.flatten(2).transpose(1, 2)
    library = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    with torch.no_grad():
        library.in_proj_weight.copy_(torch.cat([torch.eye(12), head.key.weight, head.value.weight]))
        library.in_proj_bias.zero_()
        library.in_proj_bias[24:] = head.value.bias
        library.out_proj.weight.copy_(head.project.weight)
        library.out_proj.bias.copy_(head.project.bias)
        pooled, _ = library(head.query.reshape(1, 1, 12).expand(4, -1, -1), tokens, tokens)
        expected = head.out(head.norm(pooled[:, 0]))
        torch.testing.assert_close(head(maps if first else tokens), expected)


def test_attention_begins_as_an_average_and_learns_to_look(tmp_path: Path) -> None:
    """At first moving one bright pixel changes nothing; trained to see where it is, it does."""
    body = """
def make(classes=2):
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
"""
    one = build(own(tmp_path, body), (Output("", ("low", "high")),), image_size=8, **ATTENTION)
    head = attention(net(one))
    assert head.pool == "1"
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = net(one)[0](x).flatten(2).transpose(1, 2)
        mean = head.out(head.norm(head.project(head.value(tokens.mean(1)))))
        torch.testing.assert_close(net(one).eval()(x), mean, atol=0.02, rtol=0.05)
    # the class is the sign of the channel at the brightest position: an average cannot tell
    bright = x.clone()
    bright[:, 0] = -1.0
    where = torch.randint(0, 64, (64,), generator=torch.Generator().manual_seed(2))
    labels = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(3))
    flat = bright.flatten(2)
    flat[:, 0] = -2.0
    flat[torch.arange(64), 0, where] = 4.0
    flat[torch.arange(64), 1, where] = labels.float() * 2 - 1
    bright = flat.view_as(x)
    optimizer = torch.optim.Adam(net(one).parameters(), lr=1e-2)
    net(one).train()
    for _ in range(300):
        loss = nn.functional.cross_entropy(net(one)(bright), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_zero_begins_with_no_opinion_and_still_learns(tmp_path: Path) -> None:
    for kind in ("linear", "mlp", "attention"):
        one = build(own(tmp_path), layers={"kind": kind, "begin": "zero"}, head="new")
        network = net(one).train()
        answer = network(images(one, 4))
        assert not answer.any(), kind
        torch.autograd.backward(nn.functional.cross_entropy(answer, torch.tensor([0, 1, 2, 3])))
        last = network.fc.out if kind != "linear" else network.fc
        assert last.weight.grad is not None
        assert last.weight.grad.abs().max() > 0


# --- where they stand ---------------------------------------------------------------------------------------------------

# source, size: where attention looks and what it then looks past
POOLS = {
    "torchvision:resnet18": (64, "avgpool", True, []),
    "torchvision:convnext_tiny": (64, "avgpool", True, ["classifier.0"]),
    "torchvision:vgg11": (64, "avgpool", False, ["classifier.0", "classifier.3"]),
    "torchvision:mobilenet_v3_small": (64, "avgpool", True, ["classifier.0"]),
    "torchvision:mobilenet_v2": (64, "features", False, []),
    "torchvision:squeezenet1_1": (64, "", True, []),
    "torchvision:swin_t": (64, "avgpool", True, []),
    "torchvision:vit_b_32": (64, "encoder", False, []),
    "timm:test_resnet": (64, "global_pool", True, []),
    "timm:test_convnext": (64, "head.global_pool", True, ["head.norm"]),
    "timm:test_vit": (160, "norm", False, []),
    "timm:test_vit2": (64, "norm", False, ["fc_norm"]),
    "timm:test_vit3": (160, "attn_pool", True, ["attn_pool"]),
    "timm:test_mambaout": (64, "head", True, ["head.norm", "head.pre_logits"]),
}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the values of big networks are drawn from takes seconds, and does not matter here."""

    def quickly(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with torch.no_grad():
            return tensor.uniform_(-0.1, 0.1)

    for name in ("trunc_normal_", "xavier_uniform_", "kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, quickly)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("source", POOLS)
def test_attention_finds_what_is_pooled_and_nothing_is_left_without_a_gradient(source: str) -> None:
    size, pool, before, skipped = POOLS[source]
    one = build(source, image_size=size, **ATTENTION)
    head = attention(net(one))
    assert (head.pool, head.before) == (pool, before)
    assert sorted(name for name, module in net(one).named_modules() if isinstance(module, Skipped)) == skipped
    strategies.apply(full.Config(), net(one), one.head, one.fresh, lambda amount: 0)
    net(one).train()
    answer = net(one)(images(one, 2))
    assert answer.shape == (2, 5)
    answer.sum().backward()
    assert [name for name, p in net(one).named_parameters() if p.grad is None] == []
    assert head.seen is None, "nothing is kept after a pass"
    net(one).eval()
    with torch.no_grad():
        assert torch.equal(net(one)(images(one)), copy.deepcopy(net(one))(images(one)))


def test_attention_goes_by_what_the_trunk_gives(tmp_path: Path) -> None:
    """The logits are those of the head on the trunk's own map, and the copy of a network looks at the copy."""
    one = build(own(tmp_path), **ATTENTION)
    network, x = net(one).eval(), images(one)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        maps = network.trunk(x)
        alone = Attention(**{**attention(network).arguments, "pool": ""}).eval()
        alone.load_state_dict(attention(network).state_dict())
        torch.testing.assert_close(network(x), alone(maps), rtol=0, atol=0)
        before = network(x)
        for parameter in network.trunk.parameters():
            parameter.zero_()
        assert not torch.equal(network(x), before)
        torch.testing.assert_close(copied(x), before, rtol=0, atol=0)
        network.trunk(x)  # a pass that ends early
        copy.deepcopy(network)
        attention(network).seen = None
        with pytest.raises(RuntimeError, match="'pool' is given or gives, and that did not run"):
            network.fc(torch.zeros(2, 8))


def test_mixed_precision_and_a_copy_in_the_middle_of_a_pass(tmp_path: Path) -> None:
    one = build(own(tmp_path), TWO, heads={"species": ATTENTION, "hair color": {"layers": {"kind": "mlp", "width": 4}}})
    network, x = net(one).eval(), images(one)
    plain = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), plain, atol=0.05, rtol=0.05)
    network.pool.register_forward_hook(lambda *_: copy.deepcopy(network) and None)
    network(x).sum().backward()
    assert attention(network).key.weight.grad is not None


def test_heads_of_different_kinds_share_a_trunk(tmp_path: Path) -> None:
    """Attention beside a linear head: what stands between the pooling and the linear head stays."""
    one = build(own(tmp_path), TWO, heads={"species": ATTENTION})
    assert not any(isinstance(module, Skipped) for module in net(one).modules())
    x = images(one)
    network = net(one).eval()
    with torch.no_grad():
        answer = network(x)
        plain = network.norm(network.pool(network.trunk(x)).flatten(1))
        torch.testing.assert_close(answer[:, 3:], network.fc.hair_color(plain))
    answer = network.train()(x)
    answer.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1", "densenet121"])
def test_a_library_does_to_several_heads_what_it_does_to_one(name: str) -> None:
    """Auxiliary heads are several too, and linear; a convolution before a pooling stays one."""
    one = build(f"torchvision:{name}", TWO, image_size=64, heads={"hair color": {"layers": {"kind": "mlp", "width": 4}}})
    answer = net(one).train()(images(one))
    outputs = list(answer) if isinstance(answer, tuple) else [answer]
    assert [tuple(o.shape) for o in outputs] == [(2, 5)] * len(one.head)
    for site in one.head:
        heads: Any = net(one).get_submodule(site)
        kinds = [type(head) for _, head in heads.named_children()]
        assert kinds[1] is Mlp if site == one.head[0] else kinds == [nn.Linear, nn.Linear]
    if name == "squeezenet1_1":
        assert isinstance(heads.hair_color.hidden[0], nn.Conv2d)
        mixed = build("torchvision:squeezenet1_1", TWO, image_size=64, heads={"species": ATTENTION})
        assert net(mixed)(images(mixed)).shape == (2, 5)


def test_both_heads_of_a_distilled_network_attend() -> None:
    one = build("timm:deit_tiny_distilled_patch16_224", image_size=32, **ATTENTION)
    heads = [net(one).get_submodule(name) for name in one.head]
    assert all(isinstance(head, Attention) and head.pool == "norm" for head in heads)
    assert net(one)(images(one)).shape == (2, 5)


def test_pool_from_names_what_is_attended_to(tmp_path: Path) -> None:
    one = build(own(tmp_path), layers={"kind": "attention", "pool_from": "trunk.2", "num_heads": 2})
    head = attention(net(one))
    assert (head.pool, head.before, len(head.query)) == ("trunk.2", False, 2)
    assert isinstance(net(one).trunk[3], Skipped)
    assert net(one)(images(one)).shape == (2, 5)


def test_what_cannot_do_without_a_layer_keeps_it_but_does_not_train_it(tmp_path: Path) -> None:
    """A layer between the pooling and the head whose width is counted on after it, and a parameter of no layer."""
    body = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3)
        self.wide = nn.Linear(8, 12)
        self.scale = nn.Parameter(torch.ones(12))
        self.fc = nn.Linear(12, 5)
    def forward(self, x):
        return self.fc(self.wide(self.trunk(x).mean((2, 3))).view(-1, 3, 4).flatten(1) * self.scale)

def make():
    return Net()
"""
    one = build(own(tmp_path, body), **ATTENTION)
    assert isinstance(net(one).wide, nn.Linear)
    assert "wide.weight" not in dict(net(one).named_parameters())
    assert {"wide.weight", "wide.bias", "scale"} <= set(dict(net(one).named_buffers()))
    net(one)(images(one)).sum().backward()
    assert [name for name, p in net(one).named_parameters() if p.grad is None] == []


def test_examining_a_network_whose_layer_has_two_names_leaves_it_as_it_was(tmp_path: Path) -> None:
    body = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first
        self.fc = nn.Linear(3, 5)
    def forward(self, x):
        return self.fc(self.second(self.first(x)).mean((2, 3)))

def make():
    return Net()
"""
    one = build(own(tmp_path, body))
    assert not any(p.is_meta for p in net(one).parameters())
    assert net(one)(images(one)).shape == (2, 5)


# --- rows by name -------------------------------------------------------------------------------------------------------


def parts(one: Built) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net(one).state_dict().items()}


def anatomy(one: Built) -> Anatomy:
    return examine(net(one), "it", 3, one.spec.image_size, None)


def fitted(one: Built, checkpoint: Checkpoint, outputs: tuple[Output, ...], **adapt: Any) -> Any:
    return fit(net(one), checkpoint, anatomy(one), Adapt.model_validate(adapt), outputs)


def test_an_old_heads_classes_are_matched_with_each_new_head(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = own(tmp_path)
    old = parts(build(source, FIVE))
    new = (Output("pets", ("dog", "yak", "cat")), Output("insects", ("bee", "fly")))
    one = build(source, new)
    drawn = parts(one)
    report = fitted(one, Checkpoint("it", old, FIVE[0].labels), new, heads={"insects": {"rename": {"fly": "ant"}}})
    pets, insects = net(one).fc.pets, net(one).fc.insects
    assert torch.equal(pets.weight[[0, 2]], old["fc.weight"][[3, 2]])
    assert torch.equal(pets.bias[1], drawn["fc.pets.bias"][1])
    assert torch.equal(insects.weight, old["fc.weight"][[1, 0]])
    assert "fc.pets.weight: 2 of 3 classes kept" in report.adapted
    assert "fc.insects.bias: 2 of 2 classes kept" in report.adapted
    assert report.left_over == []


def test_heads_of_the_same_name_keep_their_rows_and_others_are_new(tmp_path: Path) -> None:
    source = own(tmp_path)
    mlp = {"species": {"layers": {"kind": "mlp", "width": 6}}}
    first = build(source, TWO, heads=mlp)
    saved = Checkpoint("it", parts(first), outputs=TWO)
    outputs = (Output("hair color", ("blue", "green")), Output("species", ("cat", "ant")), Output("age", ("old", "red")))
    one = build(source, outputs, heads=mlp)
    drawn = parts(one)
    report = fitted(one, saved, outputs, new_rows="zero", heads=mlp)
    now = net(one).state_dict()
    assert torch.equal(now["fc.hair_color.weight"][0], saved.tensors["fc.hair_color.weight"][1])
    assert not now["fc.hair_color.weight"][1].any()
    assert torch.equal(now["fc.species.hidden.0.weight"], saved.tensors["fc.species.hidden.0.weight"])
    assert torch.equal(now["fc.species.out.weight"], saved.tensors["fc.species.out.weight"][[2, 0]])
    assert torch.equal(now["fc.age.weight"], drawn["fc.age.weight"])
    assert [name for name in report.fresh if name.startswith("fc.")] == ["fc.age.weight", "fc.age.bias"]
    alone = build(source, (Output("", ("cat", "cow")),), take="species", layers={"kind": "mlp", "width": 6})
    fitted(alone, saved, (Output("", ("cat", "cow")),), take="species", layers={"kind": "mlp", "width": 6})
    assert torch.equal(net(alone).fc.out.weight[0], saved.tensors["fc.species.out.weight"][2])
    with pytest.raises(UserError, match="no head 'age'; known: hair color, species, whose rows are asked for; write take"):
        fitted(one, saved, outputs, heads={"age": {"head": "shared"}})
    with pytest.raises(UserError, match="take: it has no head 'specis'; did you mean 'species'"):
        fitted(alone, saved, (Output("", ("cat", "cow")),), take="specis")


def test_hidden_layers_stay_only_with_the_rows_of_their_head(tmp_path: Path) -> None:
    source = own(tmp_path)
    mlp: dict[str, Any] = {"layers": {"kind": "mlp", "width": 6}}
    saved = parts(build(source, FIVE, **mlp))
    same = build(source, FIVE, **mlp)
    assert fitted(same, Checkpoint("it", saved, FIVE[0].labels), FIVE, **mlp).fresh == []
    others = (Output("", ("gnu", "hen", "ibis", "jay", "koi")),)
    report = fitted(build(source, others, **mlp), Checkpoint("it", saved, FIVE[0].labels), others, **mlp)
    assert set(report.fresh) == {f"fc.{part}" for part in ("hidden.0.weight", "hidden.0.bias", "out.weight", "out.bias")}
    for layers in (
        {"kind": "mlp", "width": 7},
        {"kind": "mlp", "width": 6, "depth": 2},
        {"kind": "attention"},
        {"kind": "linear"},
    ):
        one = build(source, FIVE, layers=layers, head="new")
        assert all(name.startswith("fc.") for name in fitted(one, Checkpoint("it", saved, FIVE[0].labels), FIVE).fresh)
        for head in ("keep", "shared"):
            with pytest.raises(UserError, match=f"head: {head}, but it holds no head for this network, of the same layers"):
                fitted(one, Checkpoint("it", saved, FIVE[0].labels), FIVE, head=head)


def test_a_file_that_names_no_classes_keeps_no_head_of_several(tmp_path: Path) -> None:
    source = own(tmp_path)
    saved = parts(build(source, FIVE))
    outputs = (Output("a", ("p", "q", "r", "s", "t")), Output("b", ("u", "v")))
    report = fitted(build(source, outputs), Checkpoint("it", saved), outputs)
    assert len([name for name in report.fresh if name.startswith("fc.")]) == 4


# --- strategies -----------------------------------------------------------------------------------------------------------


def test_a_part_of_a_head_has_a_rate_of_its_own(tmp_path: Path) -> None:
    one = build(own(tmp_path), TWO, heads={"species": ATTENTION})
    rates = {"head.species": 0.1, "head.hair_color": 0.0, "head.species.out": 2.0}
    groups = strategies.apply(head_only.Config(rates=rates), net(one), one.head, one.fresh, lambda amount: 0)
    found = {name: group.rate for group in groups for name, _ in group.parameters}
    assert found["fc.species.query"] == 0.1
    assert found["fc.species.out.bias"] == 2.0
    assert not any(name.startswith("fc.hair_color") for name in found)
    with pytest.raises(UserError, match=r"no part 'head\.specis'"):
        strategies.apply(head_only.Config(rates={"head.specis": 1.0}), net(one), one.head, one.fresh, lambda amount: 0)


def test_adapters_are_seen_by_a_head_that_looks_at_the_layer_they_stand_beside(tmp_path: Path) -> None:
    body = NET.replace("self.pool(self.trunk(x)).flatten(1)", "F.relu(self.trunk(x)).mean((2, 3))")
    one = build(own(tmp_path, body), layers={"kind": "attention", "pool_from": "trunk.3"})
    assert attention(net(one)).pool == "trunk.3"
    network, x = net(one).eval(), images(one)
    plain = network(x)
    strategies.inject(lora.Config(targets=["trunk.3"], rank=2), network, one.head, one.fresh, 0)
    strategies.apply(lora.Config(targets=["trunk.3"], rank=2), network, one.head, one.fresh, lambda amount: 0)
    network.eval()
    torch.testing.assert_close(network(x), plain)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    with torch.no_grad():
        moved = network(x)
        assert not torch.allclose(moved, plain, atol=1e-3)
        strategies.merge(lora.Config(targets=["trunk.3"], rank=2), network)
        torch.testing.assert_close(network(x), moved, atol=1e-5, rtol=1e-4)
    assert "trunk.3.weight" in dict(network.named_parameters())


# --- what makes no sense ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"kind": "mpl"}, "'linear', 'mlp', 'attention'"),
        ({"kind": "mlp", "width": 0}, "greater than or equal to 1"),
        ({"kind": "mlp", "depth": 99}, "less than or equal to 8"),
        ({"kind": "mlp", "activation": "sin"}, "'gelu', 'relu', 'silu' or 'tanh'"),
        ({"kind": "attention", "dropout": 1.0}, "less than 1"),
        ({"kind": "linear", "width": 5}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(layers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Adapt.model_validate({"layers": layers})


@pytest.mark.parametrize(
    ("outputs", "adapt", "message"),
    [
        ((Output("a", ("x", "x")), Output("b", ("y",))), {}, "'a' has the label 'x' twice"),
        ((Output("", ("x", "x")),), {}, "the head has the label 'x' twice"),
        ((Output("a", ("x",)), Output("a", ("y",))), {}, "'a' cannot be told from another, of the same name"),
        ((Output("a b", ("x",)), Output("a.b", ("y",))), {}, "'a.b' cannot be told from another, 'a b', both 'a_b'"),
        ((Output("a", ("x",)), Output("", ("y",))), {}, "one of the 2 heads of the network has no name"),
        ((Output("a", ()), Output("b", ("y",))), {}, "the head 'a' has no labels"),
        (TWO, {"rename": {"ant": "bee"}}, r"say of which: model\.adapt\.heads\.species\.rename"),
        (TWO, {"heads": {"hair colour": {}}}, "no head 'hair colour'; did you mean 'hair color'"),
        (FIVE, {"heads": {"species": {}}}, "has 'species', and the network has one head"),
        (FIVE, {"layers": {"kind": "attention", "num_heads": 3}}, r"3 does not divide the 8 channels .*; write 2 or 4"),
        (FIVE, {"layers": {"kind": "attention", "pool_from": "trnk"}}, "no module 'trnk'; did you mean 'trunk'"),
        (FIVE, {"layers": {"kind": "attention", "pool_from": "pool"}}, r"'pool' .* gives one position, \[2, 8, 1, 1\]"),
        (FIVE, {"layers": {"kind": "attention", "pool_from": "norm"}}, r"a tensor \[2, 8\], not a map or tokens"),
        (FIVE, {"layers": {"kind": "attention", "pool_from": "fc"}}, "does not run before the head 'fc'"),
        (FIVE, {"image_size": 8, **ATTENTION}, r"pools one position, since trunk\.3 come after its last \[8, 3, 3\]"),
        (TWO, {"head_module": "trunk"}, "'trunk' is a Sequential, not a linear layer or convolution; it holds trunk"),
        (TWO, {"head_module": "pool"}, "'pool' is a AdaptiveAvgPool2d, not a linear layer"),
        (TWO, {"head": "keep"}, r"'fc' of .* has 5 outputs and the task has 5 classes of linear heads; write auto or new"),
    ],
)
def test_heads_that_cannot_be_are_refused(tmp_path: Path, outputs: Any, adapt: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(own(tmp_path), outputs, **adapt)


def test_what_pools_nothing_is_refused_with_what_to_name(tmp_path: Path) -> None:
    body = "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5))\n"
    with pytest.raises(UserError, match=r"positions is the image itself, so there is nothing to attend to"):
        build(own(tmp_path, body), image_size=8, **ATTENTION)
    with pytest.raises(UserError, match=r"pools one position, since layer4\.0\.conv1, .* come after .*pool_from"):
        build("torchvision:resnet18", image_size=32, **ATTENTION)


def test_names_of_heads_become_names_of_modules() -> None:
    names = ["species", "hair color", "a.b", "type", "3d", "class", "größe", "half"]
    assert [module_name(name) for name in names] == ["species", "hair_color", "a_b", "type_", "_3d", "class_", "größe", "half_"]
    assert all(hasattr(nn.Module(), name) for name in ("type", "half")), "or these would stay as they are"


def test_the_run_file_knows_heads(tmp_path: Path) -> None:
    bare(tmp_path)
    changes = ["model.adapt.layers={kind: mlp}", "model.adapt.heads={species: {layers: {kind: attention, num_heads: 2}}}"]
    run = load(tmp_path / "tiny.yaml", changes)
    (tmp_path / "again.yaml").write_text(dump(run))
    assert load(tmp_path / "again.yaml", []) == run
    assert learnt(run)["model.adapt.layers.kind"] == "mlp"
    assert learnt(run)["model.adapt.heads.species.layers.kind"] == "attention"
    assert learnt(run) != learnt(load(tmp_path / "tiny.yaml", ["model.adapt.layers={kind: linear}", changes[1]]))
    with pytest.raises(UserError, match=r"model\.adapt\.layers\.widht.*did you mean 'width'"):
        load(tmp_path / "tiny.yaml", ["model.adapt.layers={kind: mlp, widht: 3}"])
    with pytest.raises(UserError, match=r"heads\.a: like and rename go with rows"):
        load(tmp_path / "tiny.yaml", ["model.adapt.heads={a: {head: new, rename: {x: y}}}"])
