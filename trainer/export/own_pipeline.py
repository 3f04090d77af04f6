"""Makes images of seeds and classes, or texts: code of this folder's pipeline, which diffusers has none of its own for.

pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
pipe(class_labels=["cat"], generator=torch.manual_seed(0), guidance_scale=2.0).images[0].save("cat.png")
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class ClassPipeline(DiffusionPipeline):
    """A denoiser (`unet`), a scheduler and perhaps a `vae`; `labels` are its classes, `nothing` the number that says none; or a
    `tokenizer` and a `text_encoder`, where it is told texts."""

    _optional_components = ["vae", "tokenizer", "text_encoder"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self, unet: Any, scheduler: Any, vae: Any = None, tokenizer: Any = None, text_encoder: Any = None,
        labels: list[str] | None = None, nothing: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, tokenizer=tokenizer, text_encoder=text_encoder)
        self.register_to_config(labels=labels, nothing=nothing)

    def numbers(self, class_labels: Sequence[str | int]) -> torch.Tensor:
        """Names or numbers of classes as a tensor of numbers."""
        labels = self.config.labels
        return torch.tensor([labels.index(one) if isinstance(one, str) else int(one) for one in class_labels])

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """What the text encoder makes of texts; "" says nothing."""
        asked = {"padding": "max_length", "max_length": self.tokenizer.model_max_length, "truncation": True}
        tokens = self.tokenizer(list(prompts), **asked, return_tensors="pt").input_ids
        return torch.as_tensor(self.text_encoder(tokens.to(self._execution_device))[0]).to(self.unet.dtype)

    def _said(self, images: torch.Tensor, times: torch.Tensor, told: torch.Tensor | None) -> torch.Tensor:
        if type(self.unet).__name__ == "UNet2DModel":
            said = self.unet(images, times, class_labels=told, return_dict=False)[0]
        elif self.text_encoder is not None:
            said = self.unet(images, times, encoder_hidden_states=told, return_dict=False)[0]
        else:
            known = torch.zeros(len(images), dtype=torch.int64, device=images.device) if told is None else told
            said = self.unet(images, timestep=times, class_labels=known, return_dict=False)[0]
        return torch.as_tensor(said[:, : images.shape[1]])  # some also say variances

    @torch.no_grad()
    def __call__(
        self, class_labels: Sequence[str | int] | None = None, prompt: str | Sequence[str] | None = None, batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None, guidance_scale: float = 1.0,
        num_inference_steps: int = 50, output_type: str = "pil", return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """Images of `class_labels` (names or numbers, one an image) or of texts, or `batch_size` images of a network that is told
        neither."""
        device, config = self._execution_device, self.unet.config
        if self.config.labels and class_labels is None:
            raise ValueError(f"name classes: class_labels=[…] of {', '.join(self.config.labels)}")
        if (self.text_encoder is None) != (prompt is None):
            raise ValueError("the network is told no text" if prompt is not None else "say what it is to show: prompt=…")
        if guidance_scale != 1 and self.config.nothing is None:
            raise ValueError("the network knows no absence of a class; leave guidance_scale at 1")
        told = nothing = None
        if prompt is not None:
            prompts = [prompt] if isinstance(prompt, str) else prompt
            told, nothing = self.texts(prompts), self.texts([""] * len(prompts))
        elif class_labels is not None:
            told = self.numbers(class_labels).to(device)
            nothing = None if self.config.nothing is None else torch.full_like(told, self.config.nothing)
        count = batch_size if told is None else len(told)
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        images = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        images = images * getattr(self.scheduler, "init_noise_sigma", 1.0)
        draws = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for time in self.progress_bar(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(images, time) if hasattr(self.scheduler, "scale_model_input") else images
            times = time.to(device).expand(count)
            said = self._said(given, times, told)
            if guidance_scale != 1 and nothing is not None:
                without = self._said(given, times, nothing)
                said = without + guidance_scale * (said - without)
            images = self.scheduler.step(said, time, images, **draws).prev_sample
        if self.vae is not None:
            shift = getattr(self.vae.config, "shift_factor", None) or 0.0
            images = self.vae.decode(images / (getattr(self.vae.config, "scaling_factor", None) or 1.0) + shift).sample
        images = (images / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
