"""Adam with the moments of each loss apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

Gradients = Callable[[], Mapping[torch.Tensor, Sequence[torch.Tensor]]]


class AdaTask(torch.optim.Optimizer):
    """AdaTask (Yang et al. 2023, algorithm 2 for Adam): each loss has moments of its own, and a step is the sum of the losses'
    steps, so that no loss takes the step size of the others.

    `gradients()` gives [k] gradients for each parameter. Weight decay is decoupled (Loshchilov and Hutter 2019) or, when not,
    added to the gradient once, shared out over the losses.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, gradients: Gradients, lr: float, betas: tuple[float, float], eps: float,
        decoupled: bool,
    ) -> None:  # fmt: skip
        self._gradients, self._decoupled = gradients, decoupled
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move what has a gradient."""
        apart = self._gradients()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                given = apart.get(parameter)
                # what only the sum of the losses moves (the balance's own) has one row
                rows = [parameter.grad] if given is None else list(given)
                self._move(parameter, rows, group)

    def _move(self, parameter: torch.Tensor, rows: Sequence[torch.Tensor], group: dict[str, Any]) -> None:
        state = self.state[parameter]
        first, second = group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = [torch.zeros_like(parameter) for _ in rows]
            state["exp_avg_sq"] = [torch.zeros_like(parameter) for _ in rows]
        state["step"] += 1
        step = float(state["step"])
        decay = group["weight_decay"]
        if decay and self._decoupled:
            parameter.mul_(1 - group["lr"] * decay)
        for gradient, mean, square in zip(rows, state["exp_avg"], state["exp_avg_sq"], strict=True):
            if decay and not self._decoupled:
                gradient = gradient.add(parameter, alpha=decay / len(rows))
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (square / (1 - second**step)).sqrt_().add_(group["eps"])
            parameter.addcdiv_(mean, size, value=-group["lr"] / (1 - first**step))
