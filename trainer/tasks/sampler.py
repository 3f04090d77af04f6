"""From noise to images: a generator called again and again, with the schedulers of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.config import UserError
from trainer.pixels import pixels
from trainer.spec import Beside

_OF_BETAS = {
    "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler", "heun": "HeunDiscreteScheduler", "pndm": "PNDMScheduler",
}  # fmt: skip
_OF_FLOW = {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}


@dataclass(frozen=True)
class Plan:
    """How images are made: by which sampler in how many steps, and how strongly guided.

    `settings`: of the scheduler that the noise of the training is described by; `nothing`: the number that says that nothing is
    told, where the network knows one.
    """

    settings: Mapping[str, Any]
    sampler: str
    steps: int
    guidance: float = 1.0
    nothing: int | None = None


def scheduler(settings: Mapping[str, Any], sampler: str) -> Any:
    """A scheduler of diffusers for the noise of a training. Raises UserError for one that cannot take such noise out."""
    import diffusers

    flow = str(settings["_class_name"]).startswith("FlowMatch")
    known = _OF_FLOW if flow else _OF_BETAS
    name = ("euler" if flow else "ddim") if sampler == "auto" else sampler
    if name not in known:
        kind = "flow" if flow else "a network that was not trained for flow"
        raise UserError(f"the sampler {name} does not go with {kind}; write {', '.join(known)}, or auto")
    made = getattr(diffusers, known[name])
    if flow and name != "euler" and settings.get("use_dynamic_shifting"):
        raise UserError(f"the sampler {name} has no shift by the size of an image; write euler, or such as task.noise.shift: 3")
    taken = inspect.signature(made.__init__).parameters
    return made(**{key: value for key, value in settings.items() if key in taken})


def noise(seeds: Sequence[int], shape: Sequence[int]) -> tuple[torch.Tensor, list[torch.Generator]]:
    """What images are made of, float32 [n, *shape]: of each seed what torch draws first, as in pipelines of diffusers."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators]), generators


def begin(made: Any, beside: Beside, steps: int) -> None:
    """Let a scheduler begin so many steps, as the pipeline of the network does.

    Where it shifts by the size of an image, the exponent grows linearly with the number of places (Esser et al. 2024, section
    5.3.2, as Flux has it). Raises UserError for one that the pipeline does not take.
    """
    given: dict[str, Any] = {"num_inference_steps": steps}
    flow, taken = beside.flow, inspect.signature(made.set_timesteps).parameters
    if flow is not None and flow.even:
        if "sigmas" not in taken:
            raise UserError("the pipeline of this network takes the sampler euler alone; write euler, or auto")
        given = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
    if flow is not None and made.config.get("use_dynamic_shifting"):
        said = made.config
        slope = (said.max_shift - said.base_shift) / (said.max_image_seq_len - said.base_image_seq_len)
        given["mu"] = (beside.size // flow.patch) ** 2 * slope + said.base_shift - slope * said.base_image_seq_len
    made.set_timesteps(**given)


@torch.no_grad()
def sample(
    network: nn.Module, beside: Beside, plan: Plan, seeds: Sequence[int], told: Mapping[str, torch.Tensor],
    untold: Mapping[str, torch.Tensor] | None, device: torch.device, step: Callable[[], None] = lambda: None,
) -> torch.Tensor:  # fmt: skip
    """Images of seeds, uint8 [n, c, h, w] on the CPU. `told`: what the network is told of each, [n, …]; `untold`: what says that
    it is told nothing, which guidance goes on from.

    `network` in eval mode. An image depends on its seed and on what it is told, and to rounding on how many are made at once.
    `step` is called after each pass through the network. Raises UserError.
    """
    made = scheduler(plan.settings, plan.sampler)
    images, generators = noise(seeds, (beside.channels, beside.size, beside.size))
    begin(made, beside, plan.steps)
    images = images.to(device) * made.init_noise_sigma if hasattr(made, "init_noise_sigma") else images.to(device)
    draws = {"generator": generators} if "generator" in inspect.signature(made.step).parameters else {}
    for time in made.timesteps:
        given = made.scale_model_input(images, time) if hasattr(made, "scale_model_input") else images
        times = time.to(device).expand(len(images))
        found = _said(network, beside, given, times, told)
        if plan.guidance != 1 and untold is not None:
            without = _said(network, beside, given, times, untold)
            found = without + plan.guidance * (found - without)
        images = made.step(found, time, images, **draws).prev_sample
        step()
    if beside.vae is not None:
        images = beside.vae.decode(images)
    return pixels(images).cpu()


def _said(
    network: nn.Module, beside: Beside, images: torch.Tensor, times: torch.Tensor, told: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """What the network says of images, without the variances that some also give."""
    return beside.call(network, images, times, told)[:, : beside.channels].float()
