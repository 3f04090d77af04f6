"""What kind a layer is."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises: torch's own layers, and those of libraries, which all have `Norm` in their class's name."""
    return isinstance(module, _NORMS) or ("Norm" in type(module).__name__ and next(module.children(), None) is None)
