"""What may learn: one module a strategy, found by its kind, whose `choose(config, graft)` names the parameters that learn."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.config import UserError
from trainer.config.amounts import Amount
from trainer.config.learning import Strategy
from trainer.spec import ParamGroup
from trainer.strategies.base import Graft, Learns, rated

__all__ = ["Strategy", "Summary", "apply", "begin", "inject", "learning", "merge", "restless", "summary", "train_mode"]


def inject(config: Strategy, network: nn.Module, head: Sequence[str], fresh: Sequence[str], seed: int = 0) -> None:
    """Add what the strategy trains beside the network's own layers (adapters), drawn from `seed`; most add nothing."""
    module = importlib.import_module(f"trainer.strategies.{config.kind}")
    if hasattr(module, "inject"):
        module.inject(config, network, head, fresh, seed)


def merge(config: Strategy, network: nn.Module) -> nn.Module:
    """The network as the trunk's library knows it: what `inject` added becomes part of the weights, in place."""
    module = importlib.import_module(f"trainer.strategies.{config.kind}")
    merged: nn.Module = module.merge(network) if hasattr(module, "merge") else network
    return merged


def restless(config: Strategy, network: nn.Module) -> str | None:
    """A part of the network whose weights `inject` has taken off and put back in each forward pass; none where none is so."""
    module = importlib.import_module(f"trainer.strategies.{config.kind}")
    found: str | None = module.restless(network) if hasattr(module, "restless") else None
    return found


def apply(
    config: Strategy, network: nn.Module, head: Sequence[str], fresh: Sequence[str], samples: Callable[[Amount | float], int]
) -> list[ParamGroup]:
    """Set requires_grad of every parameter, and group those that learn, now or later, by rate and start.

    `head`: dotted names of the output modules; `fresh`: names of parameters without pretrained values; `samples`: what an amount,
    or a share of the training, is in samples. `inject` comes before. Raises UserError when nothing would learn from the start.
    """
    module = importlib.import_module(f"trainer.strategies.{config.kind}")
    graft = Graft(network, head, fresh, samples)
    chosen: dict[str, Learns] = rated(module.choose(config, graft), config.rates, graft)
    groups: dict[tuple[int, float], ParamGroup] = {}
    for name, parameter in network.named_parameters():
        learns = chosen.get(name) if parameter.is_floating_point() else None
        parameter.requires_grad_(learns is not None)
        if learns is not None:
            key = (learns.start, -learns.rate)
            groups.setdefault(key, ParamGroup([], learns.rate, learns.start)).parameters.append((name, parameter))
    found = [groups[key] for key in sorted(groups)]
    if not found:
        raise UserError(f"strategy.kind: {config.kind} leaves nothing that learns: the network has no such parameters")
    if found[0].start > 0:
        first = f"{found[0].start:,} samples"
        raise UserError(f"strategy.kind: {config.kind} lets nothing learn before {first}: its rates freeze the head")
    return found


def begin(groups: Sequence[ParamGroup], samples: int) -> bool:
    """Let all groups learn whose start has come, and no other; whether that changed anything."""
    changed = False
    for group in groups:
        for _, parameter in group.parameters:
            if parameter.requires_grad != (group.start <= samples):
                parameter.requires_grad_(group.start <= samples)
                changed = True
    return changed


def learning(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that learn, by name, in the order of the network."""
    return [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]


def train_mode(network: nn.Module) -> None:
    """Training mode, except for frozen layers with running statistics (BatchNorm), which keep evaluating with those.

    Such a layer is frozen when none of its parameters learns; one without parameters, when anything in the module around it is.
    """
    network.train()
    modules = dict(network.named_modules())
    for name, module in modules.items():
        if not isinstance(module, _NormBase) or module.running_mean is None:
            continue
        around = name
        while around and not any(True for _ in modules[around].parameters()):
            around = around.rpartition(".")[0]
        learns = [p.requires_grad for p in modules[around].parameters()]
        if (around == name and not any(learns)) or (around != name and not all(learns)):
            module.eval()


@dataclass(frozen=True)
class Summary:
    """Numbers of parameters that learn and that are frozen, and the modules that hold the former."""

    learning: int
    frozen: int
    modules: tuple[str, ...]

    def __str__(self) -> str:
        total = self.learning + self.frozen
        text = f"{self.learning:,} of {total:,} parameters learn ({100 * self.learning / max(total, 1):.2f}%)"
        return text if len(self.modules) > 4 else f"{text}: {', '.join(self.modules)}"


def summary(network: nn.Module) -> Summary:
    """Count what learns and what does not."""
    names = dict.fromkeys(name.rpartition(".")[0] for name, _ in learning(network))
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return Summary(sum(n for n, yes in sizes if yes), sum(n for n, yes in sizes if not yes), tuple(names))
