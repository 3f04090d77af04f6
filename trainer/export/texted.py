"""The pipelines of diffusers for networks that are told texts: which there are, and how each is made and called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.models.kinds import guidance_of
from trainer.tasks.diffusion import Diffusion


@dataclass(frozen=True)
class Texted:
    """A pipeline of diffusers; `part`: what it calls the network, `more`: what it takes besides, `load`: what loading it does."""

    name: str
    part: str
    more: dict[str, Any]
    load: dict[str, Any] = field(default_factory=dict)


_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_SD = Texted("StableDiffusionPipeline", "unet", _NO_CHECKER)
_XL = Texted("StableDiffusionXLPipeline", "unet", {}, {"add_watermarker": False})
_OF_TRANSFORMERS = {
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "FluxTransformer2DModel": "FluxPipeline",
    "PixArtTransformer2DModel": "PixArtAlphaPipeline",
}


def texted(network: Any, task: Diffusion) -> Texted:
    """The pipeline that a network is sampled by."""
    assert task.beside.text is not None
    name = _OF_TRANSFORMERS.get(type(network).__name__)
    if name is None:
        return _XL if network.config.get("addition_embed_type") == "text_time" else _SD
    load = {part: None for part, what in task.beside.text.parts.items() if what is None}
    if name == "PixArtAlphaPipeline" and task.beside.text.pipeline == "PixArtSigmaPipeline":
        name = task.beside.text.pipeline
    return Texted(name, "transformer", {}, load)


def made(network: Any, task: Diffusion, scheduler: Any) -> Any:
    """The pipeline of a network, with all that stands beside it."""
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    beside = task.beside
    assert beside.text is not None
    assert beside.vae is not None
    current(network)
    form = texted(network, task)
    vae: Any = beside.vae.network
    if beside.flow is not None and vae.config.get("shift_factor") is None:
        vae.register_to_config(shift_factor=0.0)  # those pipelines count on a number
    given = {form.part: network, "vae": vae, "scheduler": scheduler, **beside.text.parts, **form.more}
    if form is _XL:
        given |= {"force_zeros_for_empty_prompt": beside.text.zeros, "add_watermarker": False}
    return getattr(diffusers, form.name)(**given)


def asked(network: Any, task: Diffusion, prompts: str | Sequence[str], guidance: float) -> dict[str, Any]:
    """What the pipeline of a network is called with, for images of texts."""
    kind = type(network).__name__
    if kind == "PixArtTransformer2DModel":
        return {"prompt": prompts, "guidance_scale": guidance, "use_resolution_binning": False, "clean_caption": False}
    if kind != "FluxTransformer2DModel":
        return {"prompt": prompts, "guidance_scale": guidance}
    size = task.beside.image[1]
    nothing = "" if isinstance(prompts, str) else [""] * len(prompts)
    told = {"guidance_scale": guidance_of(task.generator)} if network.config.guidance_embeds else {}
    less = {"negative_prompt": nothing, "true_cfg_scale": guidance} if guidance != 1 else {}
    return {"prompt": prompts, **told, **less, "height": size, "width": size}


def current(network: Any) -> None:
    """Let a network say that this version of diffusers made it: of an old one a pipeline of texts doubts the size."""
    import diffusers

    network.register_to_config(_diffusers_version=diffusers.__version__)
