"""The adapters of a generator by themselves, as the file that diffusers reads with `load_lora_weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.config.strategies import lora
from trainer.export.pipeline import Form, compared
from trainer.export.texted import current
from trainer.models.place import Place
from trainer.restored import Restored, restore
from trainer.tasks.diffusion import Diffusion
from trainer.tasks.sampler import scheduler

FILE = "pytorch_lora_weights.safetensors"  # what diffusers looks for


def _place(restored: Restored) -> str:
    return restored.run.model.source.removeprefix("diffusers:").partition("#")[0]


def _unfit(restored: Restored, strategy: lora.Config, form: Form) -> str | None:
    """Why the adapters of a run are no such file."""
    source = restored.run.model.source
    import diffusers

    if not hasattr(getattr(diffusers, form.name, None), "save_lora_weights"):
        return f"{form.name} loads no such file (load_lora_weights)"
    if not source.startswith("diffusers:") or restored.run.model.weights != "DEFAULT":
        return f"they stand beside other weights than those of a pipeline of diffusers ({source}, {restored.run.model.weights})"
    if strategy.method != "lora":
        return f"it holds strategy.method: lora, and this is {strategy.method}"
    if strategy.head == "full" or strategy.train:
        return "other layers learnt in full beside them; strategy.head: keep, without strategy.train, leaves those as they are"
    network: Any = restored.network
    before = (Place.of(_place(restored)).json(f"{form.part}/config.json") or {}).get("in_channels")
    if before != network.config.in_channels:
        return f"the input and the output were adapted from {before} channels to {network.config.in_channels}"
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


def write(restored: Restored, form: Form, new: Path) -> str | None:
    """Write the file into a folder, load it over the pipeline that the run began with, and compare its images with graft's.

    `restored`: the network with its adapters merged. Returns why there is none, where there is none and the run has adapters.
    """
    import diffusers

    if not isinstance(restored.run.strategy, lora.Config):
        return None
    why = _unfit(restored, restored.run.strategy, form)
    if why is not None:
        return why
    task, place = restored.task, _place(restored)
    assert isinstance(task, Diffusion)
    apart = restore(restored.folder, str(restored.step), merge=False).network
    part, made = form.part, getattr(diffusers, form.name)
    made.save_lora_weights(new, **{f"{part}_lora_layers": layers(apart)}, weight_name=FILE)
    now: Any = restored.network
    before = _base(f"{place}#{part}")
    if "sample_size" in before.config:
        before.register_to_config(sample_size=now.config.sample_size)  # adapters are of every size
    plan = task.plan()
    given = {part: before, "scheduler": scheduler(plan.settings, plan.sampler), **form.load}
    pipe: Any = made.from_pretrained(new, **given)
    pipe.load_lora_weights(new, weight_name=FILE)
    difference = compared(pipe, now, task, form)
    if difference <= 1:
        return None
    (new / FILE).unlink()
    return f"over {place} it makes other images than the run (by {difference:g} of 255)"


def _base(part: str) -> Any:
    """The network that a pipeline had before anything was learnt."""
    from trainer.models.diffusers import load

    network: Any = load(part)
    current(network)
    return network
