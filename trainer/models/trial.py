"""Images sent through a generator for their shapes alone: which sizes it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call

from trainer.config import UserError
from trainer.models.sizes import nearest_working
from trainer.spec import Call

if TYPE_CHECKING:
    from trainer.models.generator import Denoiser, Shape

_AROUND = 128  # pixels to either side, where a size that works is looked for


def told(shape: Shape, count: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """What a generator is told of `count` images, for a trial."""
    if shape.text:
        return {name: torch.zeros(count, *(size or 2 for size in one), device=device) for name, one in shape.text.items()}
    return {"classes": torch.arange(count, device=device) % shape.rows} if shape.rows else {}


def trial(network: nn.Module, call: Call, shape: Shape, sides: tuple[int, int]) -> torch.Tensor:
    """Two images of these sides through a generator, for shapes alone: on the meta device where that works, else for real."""
    values = {n: torch.empty_like(v, device="meta") for n, v in [*network.named_parameters(), *network.named_buffers()]}

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *given: Any) -> torch.Tensor:
            return call(self.network, *given)

    def given(device: str) -> tuple[Any, ...]:
        images = torch.zeros(2, shape.taken, *sides, device=device)
        return images, torch.zeros(2, device=device), told(shape, 2, device)

    training = network.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            network.eval()
            try:
                found: torch.Tensor = functional_call(
                    Called(), {f"network.{name}": value for name, value in values.items()}, given("meta")
                )
            except Exception:  # may be the meta device's fault
                found = call(network, *given("cpu"))
        finally:
            network.train(training)
    return found


def problem(network: nn.Module, call: Call, shape: Shape, height: int, width: int) -> str | None:
    """Why a generator does not make images of this height and width; none where it does. Raises UserError."""
    try:
        found = trial(network, call, shape, (height, width))
    except UserError:
        raise
    except Exception as error:  # the network is anybody's: anything can come
        return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
    if not isinstance(found, torch.Tensor):
        return f"it gives a {type(found).__name__}, not a tensor"
    count, channels, *sides = found.shape
    if count != 2 or sides != [height, width] or channels not in (shape.channels, 2 * shape.channels):
        return f"of {[2, shape.taken, height, width]} it makes {list(found.shape)}"
    return None


def check_size(network: nn.Module, source: Denoiser, shape: Shape, factor: int) -> None:
    """Raises UserError, with the nearest sizes that work, where the network does not give as many pixels as it is given.

    `factor`: pixels of an image to one of what the network makes, along each side.
    """

    def of_square(size: int) -> str | None:
        return problem(network, source.call, shape, size, size)

    why = of_square(shape.size)
    if why is None:
        return
    near = [str(size * factor) for size in nearest_working(lambda size: of_square(size) is None, shape.size, _AROUND)]
    hint = f"; the nearest sizes that it does are {' and '.join(near)}: set model.adapt.image_size accordingly" if near else ""
    raise UserError(f"{source.name}: does not generate {shape.size} x {shape.size} of {shape.channels} channels ({why}){hint}")
