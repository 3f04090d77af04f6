"""Two networks against each other: each learns from its own loss alone, and their losses are those of the papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainer.config import Run, UserError
from trainer.config.adapt import Adapt
from trainer.config.balances import match
from trainer.config.model import Model
from trainer.config.pictures import Adversary
from trainer.losses.balances import match as match_balance
from trainer.losses.balances.base import Scale, shared
from trainer.models import build_model
from trainer.models.critic import build_critic
from trainer.spec import Critic, Reconstructor
from trainer.tasks.adversary import Opponent


@pytest.mark.parametrize(
    ("kind", "critic", "maker"),
    [
        ("hinge", lambda r, f: functional.relu(1 - r) + functional.relu(1 + f), lambda f: -f),
        ("lsgan", lambda r, f: (r - 1) ** 2 + f**2, lambda f: (f - 1) ** 2),
        (
            "non_saturating",
            lambda r, f: -torch.sigmoid(r).log() - (1 - torch.sigmoid(f)).log(),
            lambda f: -torch.sigmoid(f).log(),
        ),
    ],
)
def test_each_side_has_its_loss(kind: Any, critic: Any, maker: Any) -> None:
    network = build_critic(Critic(4, 8, 2, 1.0), 16, 0)
    opponent = Opponent(Adversary(loss=kind), network, shown=True)
    given, real = torch.randn(3, 1, 16, 16), torch.randn(3, 3, 16, 16)
    made = torch.randn(3, 3, 16, 16, requires_grad=True)
    said = [network(torch.cat([given, pictures], dim=1)).detach() for pictures in (real, made)]
    assert said[0].shape == (3, 1, 4, 4)
    own = opponent.deceive(given, made)
    assert torch.allclose(own, maker(said[1]).mean(dim=(1, 2, 3)), atol=1e-5)
    torch.autograd.backward(own.sum())
    assert made.grad is not None
    assert float(made.grad.abs().max()) > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    other = opponent.judge(network, given, real)
    assert torch.allclose(other, critic(*said).mean(dim=(1, 2, 3)), atol=1e-5)
    before = made.grad.clone()
    torch.autograd.backward(other.sum())
    assert torch.equal(made.grad, before), "the maker takes no gradient of the critic's loss"
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_critic_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="layers is 5, and 16 pixels are halved 4 times at most"):
        build_critic(Critic(3, 8, 5, 1.0), 16, 0)
    assert build_critic(Critic(3, 8, 4, 1.0), 16, 0)(torch.zeros(1, 3, 16, 16)).shape == (1, 1, 1, 1)
    for task, losses, message in (
        ({"losses": ["adversarial"]}, {}, "adversarial alone asks for real pictures"),
        ({"losses": ["l1", "mse"], "adversary": {}}, {}, "adversary says a critic, and losses do not name it"),
        ({"losses": ["l1", "adversarial"]}, {"balance": {"kind": "gradnorm"}}, "write balance: match, or weights"),
    ):
        with pytest.raises(ValueError, match=message):
            Run.model_validate({
                "name": "r", "task": {"kind": "translate", "pairs": "grey", **task}, "losses": losses,
                "model": {"source": "torchvision:resnet18"}, "strategy": {"kind": "full"}, "data": {"train": "folder:x"},
                "optimizer": {"kind": "adam", "lr": 1e-3},
            })  # fmt: skip


def test_matched_losses_pull_alike_at_the_last_layer() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    learning = [("first.weight", next(first.parameters())), ("last.weight", next(last.parameters()))]
    scale = Scale(("a", "b"), learning, ("last",), 6, lambda values: values, lambda amount: 0)
    balance = match_balance.build(match.Config(), scale)
    x = torch.randn(6, 3)
    made = last(first(x).relu())
    losses = torch.stack([made[:, 0].square(), 10 * made[:, 1] - 3], dim=1)
    norms = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in losses.mean(dim=0)]
    assert torch.allclose(balance(losses), losses.sum(dim=1)), "alike at first"
    balance.settle(6, good=True)
    assert balance.weights.tolist() == pytest.approx([1, float(norms[0] / norms[1])], rel=1e-5)
    weights = balance.weights.clone()
    balance(losses * torch.tensor([1.0, float("nan")]))
    balance.settle(12, good=False)
    assert torch.equal(balance.weights, weights), "a step that was not taken does not count"
    least = float(norms[0] / norms[1]) / 2
    small = match_balance.build(match.Config(most=least), scale)
    small(losses)
    small.settle(6, good=True)
    assert small.weights.tolist() == pytest.approx([1, least])


def matched(layer: str | None = None) -> tuple[nn.Sequential, Any]:
    """A network of two layers, the last of which was made first, and a balance of its two losses."""
    torch.manual_seed(0)
    network = nn.Sequential()
    for name, module in (("last", nn.Linear(4, 2)), ("first", nn.Linear(3, 4))):
        network.add_module(name, module)
    scale = Scale(("a", "b"), list(network.named_parameters()), ("last",), 6, lambda values: values, lambda amount: 0)
    return network, match_balance.build(match.Config(layer=layer), scale)


def both(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[n, 2]."""
    made = network.get_submodule("last")(network.get_submodule("first")(x).relu())
    return torch.stack([made[:, 0].square(), 10 * made[:, 1] - 3], dim=1)


@pytest.mark.parametrize("layer", [None, "first"])
def test_losses_are_matched_over_all_micro_batches(layer: str | None) -> None:
    """At the output module, wherever it stands among the parameters, or at the layer that is named."""
    network, balance = matched(layer)
    weight = network.get_parameter(f"{layer or 'last'}.weight")
    x = torch.randn(6, 3)
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in both(network, x).mean(dim=0)]
    for part in torch.split(x, [4, 2]):
        balance(both(network, part))
    balance.settle(6, good=True)
    assert balance.weights.tolist() == pytest.approx([1, float(norms[0] / norms[1])], rel=1e-5)


def test_a_loss_that_does_not_reach_the_layer_is_not_matched() -> None:
    network, balance = matched()
    x = torch.randn(6, 3)
    losses = both(network, x)
    balance(torch.stack([losses[:, 0], network.get_submodule("first")(x).square().sum(dim=1)], dim=1))
    with pytest.raises(UserError, match=r"the loss 'b' has no gradient at 'last\.weight'; name a layer that all"):
        balance.settle(6, good=True)
    network, balance = matched()
    balance(both(network, x))
    balance.settle(6, good=True)
    before = balance.weights.clone()
    for nothing in ([1.0, 0.0], [0.0, 1.0]):
        balance(both(network, x) * torch.tensor(nothing))
        balance.settle(12, good=True)
        assert torch.equal(balance.weights, before), "a step in which a loss says nothing is no reason to weigh it anew"
    frozen = Scale(("a", "b"), [], ("last",), 6, lambda values: values, lambda amount: 0)
    with pytest.raises(UserError, match="compared at a layer that learns from the start, and none does"):
        match_balance.build(match.Config(), frozen)
    learning = list(network.named_parameters())
    with pytest.raises(UserError, match="no layer 'lost' learns from the start; did you mean 'last'"):
        match_balance.build(match.Config(layer="lost"), Scale(("a", "b"), learning, (), 6, lambda v: v, lambda amount: 0))


def test_an_autoencoder_is_matched_at_the_last_convolution_of_its_decoder() -> None:
    """diffusers registers `post_quant_conv`, through which the latents go, after the decoder."""
    small: Any = {
        "block_out_channels": [8], "norm_num_groups": 4, "latent_channels": 2,
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
    }  # fmt: skip
    model = Model(source="diffusers:AutoencoderKL", args=small, adapt=Adapt(image_size=16))
    built = build_model(model, "auto", Reconstructor(), 0)
    learning = list(built.network.named_parameters())
    scale = Scale(("l1", "adversarial"), learning, built.head, 6, lambda values: values, lambda amount: 0)
    assert learning[-1][0] != "network.decoder.conv_out.bias"
    assert shared(scale, None, heads=True)[0] == "network.decoder.conv_out.weight"
