"""The adapters of a generator by themselves, as the file that diffusers reads with `load_lora_weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.config import UserError
from trainer.config.strategies import lora
from trainer.export.pipeline import TEXT, Form, compared, current
from trainer.restored import Restored, restore
from trainer.tasks.diffusion import Diffusion
from trainer.tasks.sampler import scheduler

FILE = "pytorch_lora_weights.safetensors"  # what diffusers looks for


def unfit(restored: Restored, form: Form) -> str | None:
    """Why the adapters of a run are no such file; none where they are, or where the run has none."""
    strategy, source = restored.run.strategy, restored.run.model.source
    if not isinstance(strategy, lora.Config):
        return None
    if form.name != TEXT:
        return "only diffusers' pipelines of text load one"
    if not source.startswith("diffusers:"):
        return f"they stand beside the weights of {source}, which is no pipeline of diffusers"
    if strategy.method != "lora":
        return f"it holds strategy.method: lora, and this is {strategy.method}"
    if strategy.head == "full" or strategy.train:
        return "other layers learnt in full beside them; strategy.head: keep, without strategy.train, leaves those as they are"
    return None


def layers(network: Any) -> dict[str, torch.Tensor]:
    """The matrices of each adapter by name, as diffusers names them; their scale is in the second one."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.lora_A
            first: Any = module.lora_A[adapter]
            second: Any = module.lora_B[adapter]
            found[f"{name}.lora_A.weight"] = first.weight.detach().contiguous()
            found[f"{name}.lora_B.weight"] = (second.weight.detach() * module.scaling[adapter]).contiguous()
    return found


def write(restored: Restored, form: Form, new: Path) -> None:
    """Write the file into a folder, load it over the pipeline that the run began with, and compare its images with graft's.

    `restored`: the network with its adapters merged. Raises UserError where the images are others.
    """
    import diffusers

    task, place = restored.task, restored.run.model.source.removeprefix("diffusers:").partition("#")[0]
    assert isinstance(task, Diffusion)
    apart = restore(restored.folder, str(restored.step), merge=False).network
    diffusers.StableDiffusionPipeline.save_lora_weights(new, unet_lora_layers=layers(apart), weight_name=FILE)
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(
        new, unet=_base(place), scheduler=scheduler(task.plan().settings, task.plan().sampler)
    )
    pipe.load_lora_weights(new, weight_name=FILE)
    difference = compared(pipe, restored.network, task, form)
    if not difference <= 1:
        raise UserError(
            f"the adapters make other images over {place} than the run (by {difference:g} of 255); nothing was written"
        )


def _base(place: str) -> Any:
    """The network that a pipeline had before anything was learnt."""
    from trainer.models.diffusers import load

    network: Any = load(f"{place}#unet")
    current(network)
    return network
