"""The task of an autoencoder whose latents a generator can learn on."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from trainer.config.pictures import Pictures


class Config(Pictures):
    """Make pictures again of few numbers: an autoencoder with a normal posterior (Kingma and Welling 2014)."""

    kind: Literal["autoencoder"] = "autoencoder"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "psnr", "ssim", "mae", "kl")
    reconstructs: ClassVar[bool] = True
    losses: list[Literal["l1", "mse", "perceptual", "lpips", "kl", "adversarial"]] = Field(
        ["l1", "kl"], min_length=1, description="weighted by losses.weights, balanced by losses.balance"
    )

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(self.losses)

    def goes_with(self, run: Any) -> None:
        """Pictures from -1 to 1."""
        super().goes_with(run)
        if not {"l1", "mse"} & set(self.losses):
            raise ValueError("losses: an autoencoder is compared with its input by l1 or mse; add one of them")
        if "kl" in self.losses and run.losses.balance.kind == "match":
            weights = "kl: 1e-6, adversarial: 0.1" if "adversarial" in self.losses else "kl: 1e-6"
            raise ValueError(
                "losses.balance: match makes every loss pull as strongly as the first, and kl, which the encoder alone is of, "
                f"has to pull far less; write losses.weights: {{{weights}}} in its place, or leave kl out"
            )
        if "kl" in self.losses and "kl" not in run.losses.weights:
            raise ValueError(
                "losses: kl at weight 1 leaves nothing of the pictures; write losses.weights: {kl: 1e-6} (Rombach et al. "
                "2022), or more where the latents should be more like noise"
            )
        if run.data.normalize not in ("auto", "half"):
            raise ValueError("data.normalize: task autoencoder makes images of pixels from -1 to 1; leave it out")
