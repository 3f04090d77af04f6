"""The pipelines of diffusers for networks that are told texts: which there are, and how each is made and called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.models.kinds import KINDS
from trainer.tasks.diffusion import Diffusion


@dataclass(frozen=True)
class Texted:
    """A pipeline of diffusers; `part`: what it calls the network, `more`: what it takes besides."""

    name: str
    part: str
    more: dict[str, Any]


_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PIPELINES = {
    "UNet2DConditionModel": Texted("StableDiffusionPipeline", "unet", _NO_CHECKER),
    "SD3Transformer2DModel": Texted("StableDiffusion3Pipeline", "transformer", {}),
    "FluxTransformer2DModel": Texted("FluxPipeline", "transformer", {}),
}
BY_NAME = {texted.name: texted for texted in PIPELINES.values()}


def made(network: Any, task: Diffusion, scheduler: Any) -> Any:
    """The pipeline of a network, with all that stands beside it."""
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    beside = task.beside
    assert beside.text is not None
    assert beside.vae is not None
    current(network)
    texted = PIPELINES[type(network).__name__]
    vae: Any = beside.vae.network
    if texted.part == "transformer" and vae.config.get("shift_factor") is None:
        vae.register_to_config(shift_factor=0.0)  # those pipelines count on a number
    given = {texted.part: network, "vae": vae, "scheduler": scheduler, **beside.text.parts}
    return getattr(diffusers, texted.name)(**given, **texted.more)


def asked(network: Any, task: Diffusion, prompts: str | Sequence[str], guidance: float) -> dict[str, Any]:
    """What the pipeline of a network is called with, for images of texts."""
    if type(network).__name__ != "FluxTransformer2DModel":
        return {"prompt": prompts, "guidance_scale": guidance}
    size = task.beside.image[1]
    nothing = "" if isinstance(prompts, str) else [""] * len(prompts)
    told = {"guidance_scale": task.generator.distilled} if network.config.guidance_embeds else {}
    less = {"negative_prompt": nothing, "true_cfg_scale": guidance} if guidance != 1 else {}
    return {"prompt": prompts, **told, **less, "height": size, "width": size}


def absent(task: Diffusion) -> tuple[str, ...]:
    """The parts of a pipeline that there are not."""
    text = task.beside.text
    return () if text is None else tuple(name for name, part in text.parts.items() if part is None)


def flows(kind: str) -> bool:
    """Whether a network learns flow alone, which its pipeline samples."""
    return KINDS[kind].flow is not None


def current(network: Any) -> None:
    """Let a network say that this version of diffusers made it: of an old one a pipeline of texts doubts the size."""
    import diffusers

    network.register_to_config(_diffusers_version=diffusers.__version__)
