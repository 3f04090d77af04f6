"""Has a step on a CPU keep for its backward pass what it would keep on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class LikeCuda(TorchFunctionMode):
    """What CUDA keeps for the backward pass where a CPU keeps something else.

    Dropout keeps a byte a number, attention needs no matrix of its weights for it; under autocast normalisation and softmax give
    32 bits (torch's list of what autocasts to float32 on CUDA).
    """

    _FLOAT = (functional.layer_norm, functional.group_norm, functional.softmax, torch.softmax, torch.Tensor.softmax)

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self._mixed = mixed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.dropout and args:
            asked = dict(zip(("p", "training", "inplace"), args[1:], strict=False)) | kwargs
            if asked.get("training", True) and 0 < asked.get("p", 0.5) < 1 and not asked.get("inplace", False):
                return torch.native_dropout(args[0], asked.get("p", 0.5), True)[0]
        if func is functional.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs["dropout_p"] = 0.0
        if self._mixed and func in self._FLOAT and args and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)
