"""Makes pictures of pictures: code of this folder's pipeline, which diffusers has none of its own for.

pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
pipe(Image.open("grey.png"), generator=torch.manual_seed(0)).images[0].save("colour.png")
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, v2


class TranslationPipeline(DiffusionPipeline):
    """A denoiser (`unet`) that is given the source picture behind the noised one's channels, a scheduler, perhaps a `vae`; and a
    `tokenizer` and a `text_encoder` where it expects a text, which is the empty one.

    Sources become `channels` x `size` x `size`: without their colours where `grey`, their short side (`squash`: both sides) made
    `resize_to` pixels, the middle cut out.
    """

    _optional_components = ["vae", "tokenizer", "text_encoder"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self, unet: Any, scheduler: Any, vae: Any = None, tokenizer: Any = None, text_encoder: Any = None,
        channels: int = 3, size: int = 32, grey: bool = False, resize_to: int = 32, squash: bool = False,
        interpolation: str = "bilinear",
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, tokenizer=tokenizer, text_encoder=text_encoder)
        self.register_to_config(
            channels=channels, size=size, grey=grey, resize_to=resize_to, squash=squash, interpolation=interpolation
        )

    def picture(self, image: Image.Image) -> torch.Tensor:
        """A picture as the network is given it, [1, channels, size, size] in [-1, 1]."""
        config = self.config
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            raise ValueError("more than 8 bits a channel; save it in 8 bits")
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode not in ("1", "L"):
            image = image.convert("RGB")
        pixels = v2.functional.pil_to_tensor(image.convert("L" if config.grey or config.channels == 1 else "RGB"))
        side = config.resize_to
        if not config.squash:
            longest = 8 * min(pixels.shape[-2:])  # of a very long picture only the middle counts
            pixels = v2.functional.center_crop(pixels, [min(length, longest) for length in pixels.shape[-2:]])
        how = {"nearest": "NEAREST_EXACT"}.get(config.interpolation, config.interpolation.upper())
        target = [side, side] if config.squash else [side]
        pixels = v2.functional.resize(pixels, target, InterpolationMode[how], antialias=True)
        pixels = v2.functional.center_crop(pixels, [config.size, config.size])
        return torch.as_tensor(pixels.expand(config.channels, -1, -1) / 127.5 - 1)[None]

    def _said(self, images: torch.Tensor, times: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        kind = type(self.unet).__name__
        if text is not None:
            said = self.unet(images, times, encoder_hidden_states=text, return_dict=False)[0]
        elif kind == "UNet2DModel":
            said = self.unet(images, times, return_dict=False)[0]
        else:
            known = torch.zeros(len(images), dtype=torch.int64, device=images.device)
            said = self.unet(images, timestep=times, class_labels=known, return_dict=False)[0]
        return torch.as_tensor(said)

    def _silence(self, count: int) -> torch.Tensor | None:
        """What the text encoder makes of the empty text."""
        if self.text_encoder is None:
            return None
        asked = {"padding": "max_length", "max_length": self.tokenizer.model_max_length, "truncation": True}
        tokens = self.tokenizer([""] * count, **asked, return_tensors="pt").input_ids
        return torch.as_tensor(self.text_encoder(tokens.to(self._execution_device))[0]).to(self.unet.dtype)

    @torch.no_grad()
    def __call__(
        self, image: Image.Image | Sequence[Image.Image] | torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50, output_type: str = "pil", return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """Pictures of `image`: one, several, or a tensor [n, channels, size, size] in [-1, 1]."""
        device = self._execution_device
        if isinstance(image, Image.Image):
            image = [image]
        given = image if isinstance(image, torch.Tensor) else torch.cat([self.picture(one) for one in image])
        given = given.to(device, self.unet.dtype)
        scale = shift = None
        if self.vae is not None:
            scale = getattr(self.vae.config, "scaling_factor", None) or 1.0
            shift = getattr(self.vae.config, "shift_factor", None) or 0.0
            said = self.vae.encode(given)
            mean = said.latents if hasattr(said, "latents") else said.latent_dist.mean
            given = (mean - shift) * scale
        text = self._silence(len(given))
        images = randn_tensor(tuple(given.shape), generator=generator, device=device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        images = images * getattr(self.scheduler, "init_noise_sigma", 1.0)
        draws = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for time in self.progress_bar(self.scheduler.timesteps):
            noised = self.scheduler.scale_model_input(images, time) if hasattr(self.scheduler, "scale_model_input") else images
            times = time.to(device).expand(len(images))
            said = self._said(torch.cat([noised, given], dim=1), times, text)[:, : images.shape[1]]  # some also say variances
            images = self.scheduler.step(said, time, images, **draws).prev_sample
        if self.vae is not None:
            images = self.vae.decode(images / scale + shift).sample
        images = (images / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
