"""Losses beside the task's, and their balances, value by value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainer.config import UserError
from trainer.config.amounts import Amount
from trainer.config.balances import dwa, gradnorm
from trainer.config.losses import attention, features, l2_sp, logits
from trainer.losses import attention as attention_loss
from trainer.losses import features as features_loss
from trainer.losses import l2_sp as l2_sp_loss
from trainer.losses import logits as logits_loss
from trainer.losses.balances import adatask as adatask_balance
from trainer.losses.balances import dwa as dwa_balance
from trainer.losses.balances import gradnorm as gradnorm_balance
from trainer.losses.balances import uncertainty as uncertainty_balance
from trainer.losses.balances.base import Scale
from trainer.losses.base import Ground, Reference, Seen
from trainer.losses.taps import Taps, like, maps
from trainer.optim.adatask import AdaTask
from trainer.spec import InputSpec, Output

SPEC = InputSpec(1, 8, (0.5,), (0.5,))
CLASSES = (Output("", ("a", "b", "c")),)


class Net(nn.Module):
    """Two blocks of maps, of 8 and 4 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one_conv = nn.Conv2d(1, width, 3, padding=1)
        self.one = nn.Sequential(self.one_conv, nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.ReLU())
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.two(self.one(x)).mean(dim=(2, 3)))
        return y


def ground(width: int = 4, other: int = 6) -> tuple[Ground, Net, Net]:
    torch.manual_seed(0)
    own, given = Net(width), Net(other).eval()
    reference = Reference(given, Taps(given, "the teacher"), ["one", "two"], given)
    made = Ground(own, CLASSES, SPEC, Taps(own, "the network"), ["one", "two"], {"teacher": reference})
    return made, own, given


def see(
    made: Ground, loss: nn.Module, images: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    reference = made.references["teacher"]
    with made.taps.listening(), reference.taps.listening():
        own = made.network(images)
        given = reference.answer(images)
        value = loss(Seen(own, {"teacher": given}))
        return value, dict(made.taps.seen), dict(reference.taps.seen)


def test_answers_of_a_teacher() -> None:
    own, given = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), torch.tensor([[0.0, 4.0, 0.0], [1.0, 1.0, 1.0]])
    loss = logits_loss.Logits(logits.Config(temperature=2.0), CLASSES)
    found = loss(Seen(own, {"teacher": given}))
    for row in range(2):
        p, q = (given[row] / 2).softmax(0), (own[row] / 2).softmax(0)
        by_hand = 4 * sum(float(a) * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        assert float(found[row]) == pytest.approx(by_hand, abs=1e-6)
    assert logits_loss.Logits(logits.Config(), CLASSES)(Seen(given, {"teacher": given})).tolist() == pytest.approx(
        [0, 0], abs=1e-6
    )
    hard = logits_loss.Logits(logits.Config(hard=True), CLASSES)(Seen(own[:1], {"teacher": given[:1]}))
    assert float(hard) == pytest.approx(float(functional.cross_entropy(own[:1], torch.tensor([1]))))


def test_answers_of_other_kinds_of_heads() -> None:
    outputs = (Output("tags", ("x", "y"), "labels"), Output("age", ("age",), "values"))
    own, given = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[2.0, 0.0, 3.5]])
    found = float(logits_loss.Logits(logits.Config(temperature=1.0), outputs)(Seen(own, {"teacher": given})))
    by_hand = 2.25
    for a, b in ((0.5, 2.0), (-1.0, 0.0)):
        p, q = 1 / (1 + math.exp(-b)), 1 / (1 + math.exp(-a))
        by_hand += (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 2
    assert found == pytest.approx(by_hand, abs=1e-5)


def test_features_with_a_learned_projection() -> None:
    made, _, _ = ground()
    loss = features_loss.build(features.Config(layers={"one": "one", "two": "two"}), made, "losses.add.hints")
    assert {name: list(p.shape) for name, p in loss.named_parameters()} == {
        "projections.one.weight": [6, 4, 1, 1], "projections.two.weight": [12, 8, 1, 1]
    }  # fmt: skip
    value, own, given = see(made, loss, torch.randn(3, 1, 8, 8))
    weights = dict(loss.named_parameters())
    by_hand = []
    for name in ("one", "two"):
        projected = torch.einsum("oi,nihw->nohw", weights[f"projections.{name}.weight"][:, :, 0, 0], own[name])
        by_hand.append((projected - given[name]).square().mean(dim=(1, 2, 3)))
    assert torch.allclose(value, (by_hand[0] + by_hand[1]) / 2, atol=1e-6)


def test_features_without_a_projection_need_the_same_channels() -> None:
    made, _, _ = ground()
    with pytest.raises(UserError, match=r"'two' has 8 channels and 'two' of the reference 12"):
        features_loss.build(features.Config(project="never"), made, "losses.add.hints")


def test_attention_maps() -> None:
    made, _, _ = ground()
    loss = attention_loss.build(attention.Config(), made, "losses.add.maps")
    value, own, given = see(made, loss, torch.randn(2, 1, 8, 8))
    by_hand = torch.zeros(2)
    for name in ("one", "two"):
        flat = [v[name].square().mean(1).flatten(1) for v in (own, given)]
        a, b = (f / f.norm(dim=1, keepdim=True) for f in flat)
        by_hand += (a - b).square().sum(1) / 2
    assert torch.allclose(value, by_hand, atol=1e-6)
    made, _, _ = ground(4, 4)
    made.network.load_state_dict(made.references["teacher"].network.state_dict())
    value, _, _ = see(made, attention_loss.build(attention.Config(), made, "k"), torch.randn(2, 1, 8, 8))
    assert value.abs().max() < 1e-6


def test_weights_near_their_start() -> None:
    made, own, _ = ground()
    start = own.one_conv.weight.detach().clone()
    made.held, made.new = [(own.one_conv.weight, start)], [own.head.weight]
    with torch.no_grad():
        own.one_conv.weight += 0.5
    loss = l2_sp_loss.build(l2_sp.Config(alpha=0.2, beta=0.4), made, "losses.add.near")
    value = loss(Seen(torch.zeros(3, 3), {}))
    expected = 0.1 * 0.25 * start.numel() + 0.2 * float(own.head.weight.detach().square().sum())
    assert value.tolist() == pytest.approx([expected] * 3, rel=1e-5)
    made.held = []
    with pytest.raises(UserError, match="nothing that came with the weights learns"):
        l2_sp_loss.build(l2_sp.Config(), made, "losses.add.near")


def test_layers_by_name() -> None:
    made, _, _ = ground()
    with pytest.raises(UserError, match=r"losses\.add\.hints\.layers: the network has no layer 'ones'; did you mean 'one'"):
        features_loss.build(features.Config(layers=["ones"]), made, "losses.add.hints")
    with pytest.raises(UserError, match="the teacher has no layer 'three'"):
        features_loss.build(features.Config(layers={"one": "three"}), made, "losses.add.hints")
    with pytest.raises(UserError, match="is empty"):
        features_loss.build(features.Config(layers=[]), made, "losses.add.hints")


def test_maps_of_any_form() -> None:
    square = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    assert torch.equal(maps(square, "x"), square)
    assert torch.equal(maps(square.permute(0, 2, 3, 1), "x"), square), "channels last"
    tokens = square.flatten(2).transpose(1, 2)
    for extra in (0, 1, 5):
        with_extra = torch.cat([torch.full((2, extra, 3), -1.0), tokens], dim=1)
        assert torch.equal(maps(with_extra, "x"), square)
    assert maps(torch.ones(2, 7), "x").shape == (2, 7, 1, 1)
    with pytest.raises(UserError, match="no features of images"):
        maps(torch.ones(2), "x")
    assert torch.equal(like(square, square[:, :, :2, :2])[0, 0, 0, 0], square[0, 0, :2, :2].mean())
    assert like(square[:, :, :2, :2], square).shape == square.shape


def scale(names: Sequence[str] = ("a", "b"), learning: Any = (), batch: int = 4) -> Scale:
    def samples(amount: Amount) -> int:
        return amount.samples(epoch_samples=8, step_samples=batch)

    return Scale(names, list(learning), ["head"], batch, lambda values: values, samples)


def test_uncertainty() -> None:
    balance = uncertainty_balance.Uncertainty(2)
    losses = torch.tensor([[2.0, 8.0], [4.0, 0.0]])
    assert balance(losses).tolist() == [10.0, 4.0]
    with torch.no_grad():
        balance.log_variance.copy_(torch.tensor([math.log(2.0), math.log(4.0)]))
    assert balance.weights.tolist() == pytest.approx([0.5, 0.25])
    assert balance(losses)[0].item() == pytest.approx(1 + 2 + 0.5 * math.log(8))
    mean = losses.mean(dim=0)
    with torch.no_grad():
        balance.log_variance.copy_((2 * mean).log())  # where the docstring says that it comes to rest
    balance.zero_grad()
    torch.autograd.backward(balance(losses).mean())
    assert balance.log_variance.grad is not None
    assert balance.log_variance.grad.abs().max() < 1e-6


def test_dynamic_weight_average() -> None:
    balance = dwa_balance.build(dwa.Config(temperature=2.0), scale())

    def step(at: int, a: float, b: float, *, good: bool = True) -> list[float]:
        total = balance(torch.tensor([[a, b]] * 4))
        assert total[0].item() == pytest.approx(float(a * balance.weights[0] + b * balance.weights[1]), nan_ok=True)
        balance.settle(at, good=good)
        return list(balance.weights.tolist())

    assert step(4, 4.0, 2.0) == [1, 1]
    assert step(8, 2.0, 2.0) == [1, 1], "one interval says nothing yet"
    assert step(12, 1.0, 2.0) == [1, 1]
    assert step(16, 99.0, float("nan"), good=False) == pytest.approx(
        [2 * float(w) for w in torch.tensor([1 / 3 / 2, 2 / 2 / 2]).softmax(0)]
    ), "means 3 and 2, then 1 and 2; a step that was not taken does not count"
    again = dwa_balance.build(dwa.Config(temperature=2.0), scale())
    again.load_state_dict(balance.state_dict())
    assert again.weights.tolist() == balance.weights.tolist()


def test_gradnorm_takes_a_step_of_its_algorithm() -> None:
    torch.manual_seed(1)
    trunk, head = nn.Linear(3, 2, bias=False), nn.Linear(2, 2)
    learning = [("trunk.weight", trunk.weight), ("head.weight", head.weight)]
    balance = gradnorm_balance.build(gradnorm.Config(alpha=1.0, rate=0.1), scale(learning=learning))
    x = torch.randn(4, 3)

    def losses() -> torch.Tensor:
        y = head(trunk(x))
        return torch.stack([y[:, 0].square(), 10 * (y[:, 1] - 1).square()], dim=1)

    def norms() -> torch.Tensor:
        each = losses().mean(dim=0)
        return torch.stack([torch.autograd.grad(loss, trunk.weight, retain_graph=True)[0].norm() for loss in each])

    first = losses().mean(dim=0).detach()
    torch.autograd.backward(balance(losses()).mean())
    g = norms()
    balance.settle(4, good=True)
    moved = torch.ones(2) - 0.1 * torch.sign(g - g.mean()) * g
    expected = 2 * moved.clamp(min=1e-3) / moved.clamp(min=1e-3).sum()
    assert torch.allclose(balance.weights, expected, atol=1e-6)
    with torch.no_grad():
        trunk.weight *= 0.5
    weights, now, g = balance.weights.clone(), losses().mean(dim=0).detach(), norms()
    torch.autograd.backward(balance(losses()).mean())
    balance.settle(8, good=True)
    speed = now / first
    target = (weights * g).mean() * speed / speed.mean()
    moved = (weights - 0.1 * torch.sign(weights * g - target) * g).clamp(min=1e-3)
    assert torch.allclose(balance.weights, 2 * moved / moved.sum(), atol=1e-6)


def test_gradnorm_needs_a_shared_layer_that_every_loss_reaches() -> None:
    trunk, head = nn.Linear(3, 2), nn.Linear(2, 2)
    with pytest.raises(UserError, match="and none does"):
        gradnorm_balance.build(gradnorm.Config(), scale(learning=[("head.weight", head.weight)]))
    learning = [("trunk.weight", trunk.weight)]
    with pytest.raises(UserError, match="no layer 'tronk' of the trunk learns from the start; did you mean 'trunk'"):
        gradnorm_balance.build(gradnorm.Config(layer="tronk"), scale(learning=learning))
    balance = gradnorm_balance.build(gradnorm.Config(), scale(learning=learning))
    torch.autograd.backward(balance(torch.stack([trunk(torch.ones(4, 3)).sum(1), torch.ones(4)], dim=1)).sum())
    with pytest.raises(UserError, match=r"the loss 'b' has no gradient at 'trunk\.weight'"):
        balance.settle(4, good=True)


def test_adatask_keeps_the_moments_apart() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    balance = adatask_balance.Apart(scale(learning=[("w", weight)], batch=2))
    optimizer = AdaTask(
        [{"params": [weight]}], gradients=lambda: balance.gradients, lr=0.1, betas=(0.9, 0.99), eps=1e-8, decoupled=True
    )
    by_hand = weight.detach().clone()
    moments = [[torch.zeros(2), torch.zeros(2)] for _ in range(2)]
    for step in range(1, 4):
        x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        losses = torch.stack([(x @ weight).square(), 100 * (x @ weight)], dim=1)
        single = [torch.autograd.grad(losses[:, k].mean(), weight, retain_graph=True)[0] for k in range(2)]
        torch.autograd.backward(balance(losses).sum() / 2)
        assert weight.grad is not None
        assert torch.allclose(weight.grad, single[0] + single[1], atol=1e-4)
        balance.settle(2 * step, good=True)
        optimizer.step()
        optimizer.zero_grad()
        for gradient, pair in zip(single, moments, strict=True):
            pair[0] = 0.9 * pair[0] + 0.1 * gradient
            pair[1] = 0.99 * pair[1] + 0.01 * gradient**2
            by_hand -= 0.1 * (pair[0] / (1 - 0.9**step)) / ((pair[1] / (1 - 0.99**step)).sqrt() + 1e-8)
        assert torch.allclose(weight, by_hand, atol=1e-5)


def test_a_scale_of_one_loss_moves_nothing_of_adatask() -> None:
    """What the rate adapts to: a loss times 1,000 takes the same steps."""
    found = []
    for factor in (1.0, 1000.0):
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        balance = adatask_balance.Apart(scale(learning=[("w", weight)], batch=1))
        optimizer = AdaTask(
            [{"params": [weight]}],
            gradients=partial(getattr, balance, "gradients"),
            lr=0.1,
            betas=(0.9, 0.99),
            eps=1e-12,
            decoupled=True,
        )
        for step in range(3):
            losses = torch.stack([weight.square().sum()[None], factor * (weight[:1] - 3).square()], dim=1)
            torch.autograd.backward(balance(losses).sum())
            balance.settle(step + 1, good=True)
            optimizer.step()
            optimizer.zero_grad()
        found.append(weight.detach())
    assert torch.allclose(found[0], found[1], atol=1e-5)
