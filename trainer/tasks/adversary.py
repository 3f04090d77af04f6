"""An adversarial loss: a second network learns to tell what the first one makes from what is real, and that one to deceive it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from trainer.config.pictures import Adversary as Config

Said = torch.Tensor
# (what the critic says of real ones, of made ones) -> its loss of each value; what it says of made ones -> the maker's
CRITIC: dict[str, Callable[[Said, Said], torch.Tensor]] = {
    "hinge": lambda real, made: functional.relu(1 - real) + functional.relu(1 + made),  # Lim and Ye 2017
    "lsgan": lambda real, made: (real - 1).square() + made.square(),  # Mao et al. 2017, equation 9
    "non_saturating": lambda real, made: functional.softplus(-real) + functional.softplus(made),  # Goodfellow et al. 2014
}
MAKER: dict[str, Callable[[Said], torch.Tensor]] = {
    "hinge": lambda made: -made,
    "lsgan": lambda made: (made - 1).square(),
    "non_saturating": lambda made: functional.softplus(-made),
}


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """Within it the parameters of a network take no gradient, and what goes through it does."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


class Opponent:
    """The critic and both sides' losses, one value a sample.

    What the maker made in its own pass, micro-batch by micro-batch, is what the critic learns from afterwards: it is not made
    again.
    """

    def __init__(self, config: Config, network: nn.Module, *, shown: bool) -> None:
        """`shown`: the critic sees the input beside the picture."""
        self._config, self._network, self._input = config, network, shown
        self._made: deque[torch.Tensor] = deque()

    def deceive(self, given: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """The maker's loss, [n]; the critic's parameters take no gradient of it."""
        self._made.append(made.detach())
        with still(self._network):
            said = self._network(self._shown(given, made)).float()
        return MAKER[self._config.loss](said).flatten(1).mean(dim=1)

    def judge(self, module: nn.Module, given: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The critic's loss, [n]; both kinds go through it at once."""
        made = self._made.popleft()
        said = module(torch.cat([self._shown(given, real), self._shown(given, made)])).float()
        of_real, of_made = said.chunk(2)
        return CRITIC[self._config.loss](of_real, of_made).flatten(1).mean(dim=1)

    def _shown(self, given: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        return torch.cat([given, picture.to(given.dtype)], dim=1) if self._input else picture
