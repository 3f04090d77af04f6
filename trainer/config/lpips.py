"""LPIPS (Zhang et al. 2018): by which of its networks two pictures are compared, and what the figure is called."""

from __future__ import annotations

from typing import Literal

Lpips = Literal["alex", "vgg", "squeeze"]
LEAST: dict[Lpips, int] = {"alex": 31, "vgg": 16, "squeeze": 17}  # pixels of a side, of which something is left at its last layer
WHAT = (
    "also measure LPIPS (Zhang et al. 2018) with this network of torchvision and the paper's linear weights: alex as val/lpips, "
    "as the paper's authors report it, vgg and squeeze as val/lpips_vgg and val/lpips_squeeze; none: not measured"
)


def named(network: Lpips | None) -> tuple[str, ...]:
    """The metric, as an evaluation names it; none where it is not measured."""
    return () if network is None else ("lpips",) if network == "alex" else (f"lpips_{network}",)
