"""What may learn: one module a strategy, found by its kind, whose `choose(config, network, head, fresh)` sets requires_grad."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.config import UserError
from trainer.config.base import Kind

__all__ = ["Summary", "apply", "learning", "summary", "train_mode"]


def apply(config: Kind, network: nn.Module, head: Sequence[str], fresh: Sequence[str]) -> None:
    """Set requires_grad of every parameter.

    `head`: dotted names of the output modules; `fresh`: names of parameters without pretrained values. Raises UserError when
    nothing would learn.
    """
    module = importlib.import_module(f"trainer.strategies.{config.kind}")
    module.choose(config, network, head, fresh)
    if not learning(network):
        raise UserError(f"strategy.kind: {config.kind} leaves nothing that learns: the network has no such parameters")


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
