"""The most operations a second that a card can do on paper, by the numbers it multiplies: what MFU is a share of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config.run import Run

TERA = 1e12


@dataclass(frozen=True)
class Peak:
    """10^12 operations a second of dense products (no sparsity), accumulated in 32 bits; none: the card has no such unit.

    `half`: 16 bits, of which an old card may have fp16 alone (`bf16` false). `name` is what the driver calls it, as a pattern.
    """

    name: str
    half: float
    tf32: float | None
    fp32: float
    bf16: bool = True


# From NVIDIA's data sheets of each card (of those that tell figures with sparsity alone, half), SXM where a name says no more.
# None was measured here. The best product of matrices that was seen on an H100 is 794.5 of its 989.
PEAKS = (
    Peak(r"Tesla T4", 65, None, 8.1, bf16=False),
    Peak(r"Tesla V100-SXM2-\d+GB", 125, None, 15.7, bf16=False),
    Peak(r"Tesla V100-PCIE-\d+GB", 112, None, 14.0, bf16=False),
    Peak(r"NVIDIA A10", 125, 62.5, 31.2),
    Peak(r"NVIDIA L4", 121, 60, 30.3),
    Peak(r"NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
    Peak(r"NVIDIA L40S", 362, 183, 91.6),
    Peak(r"NVIDIA A100(-SXM4-\d+GB|-PCIE-\d+GB| 80GB PCIe)|A100-SXM4-\d+GB", 312, 156, 19.5),
    Peak(r"NVIDIA H100( 80GB HBM3)?", 989.4, 494.7, 67),
    Peak(r"NVIDIA H100 PCIe", 756, 378, 51),
    Peak(r"NVIDIA H100 NVL", 835, 417, 60),
    Peak(r"NVIDIA H200", 989.4, 494.7, 67),
    Peak(r"NVIDIA H200 NVL", 835, 417, 60),
    Peak(r"NVIDIA B200", 2250, 1100, 75),
)  # fmt: skip


def peak(device: str, run: Run, *, tf32: bool) -> float | None:
    """Operations a second of the card that the driver calls `device`, in the precision of a run; none where that is not known:
    a CPU, a card that is not in the table, a part of one (MIG), or numbers for which it has no unit.
    """
    found = next((one for one in PEAKS if re.fullmatch(one.name, device)), None)
    if found is None:
        return None
    precision = run.train.precision
    if precision == "bf16" and not found.bf16:
        return None
    value = found.half if precision != "fp32" else found.tf32 if tf32 else found.fp32
    return None if value is None else value * TERA
