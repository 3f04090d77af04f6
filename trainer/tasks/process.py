"""From images to noise: how much of each is left at a time, what a network is to say of the mixture, and what that weighs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from trainer.config import UserError
from trainer.config.noise import LogitNormal, Noise
from trainer.config.tasks.diffusion import Config

log = logging.getLogger("graft")
FLOW = "FlowMatchEulerDiscreteScheduler"
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2", "sigmoid": "sigmoid"}
_SAYS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
_MEANS = {said: objective for objective, said in _SAYS.items()}


@dataclass(frozen=True)
class At:
    """Where images stand between image and noise: x_t = alpha * image + sigma * noise, each float32 [n, 1, 1, 1].

    `times` [n] is what the network is told, `share` [n] in [0, 1) where that is between no noise and all of it.
    """

    alpha: torch.Tensor
    sigma: torch.Tensor
    times: torch.Tensor
    share: torch.Tensor


class Process:
    """The noise of a run, and what its network says of it.

    `settings` are those of a scheduler of diffusers that takes the noise out again.
    """

    def __init__(self, config: Config, objective: str, settings: Mapping[str, Any]) -> None:
        self.objective, self.settings = objective, dict(settings)
        self.steps = int(settings["num_train_timesteps"])
        self._config = config
        self._table = None if objective == "flow" else _cumulated(tuple(sorted(_plain(settings).items())))
        # with a shift that depends on the size of each image the scheduler shifts by itself
        self._shift = 1.0 if settings.get("use_dynamic_shifting") else float(settings.get("shift") or 1.0)

    def at(self, uniform: torch.Tensor) -> At:
        """The place of images from numbers in [0, 1), float64 [n]."""
        times = self._config.times
        if isinstance(times, LogitNormal):
            uniform = torch.sigmoid(times.mean + times.std * torch.special.ndtri(uniform))
        if self._table is None:
            sigma = self._shift * uniform / (1 + (self._shift - 1) * uniform)
            return At(_wide(1 - sigma), _wide(sigma), (sigma * self.steps).float(), sigma)
        index = (uniform * self.steps).long().clamp_(max=self.steps - 1)
        left = self._table.to(index.device)[index]
        return At(_wide(left.sqrt()), _wide((1 - left).sqrt()), index, index / self.steps)

    def target(self, images: torch.Tensor, noise: torch.Tensor, at: At) -> torch.Tensor:
        """What the network is to say: the noise (Ho et al. 2020), v (Salimans and Ho 2022, appendix D), the image, or the way
        from the image to the noise (Liu et al. 2023, equation 1, in the direction of Esser et al. 2024)."""
        if self.objective == "epsilon":
            return noise
        if self.objective == "v":
            return at.alpha * noise - at.sigma * images
        return images if self.objective == "sample" else noise - images

    def weights(self, at: At) -> torch.Tensor:
        """What the squared error at a time weighs, float32 [n].

        snr: as the error of the image that follows from what the network says, times the ratio of signal to noise; min_snr: the
        same with a ratio of at most gamma (Hang et al. 2023, equation 8 and appendix).
        """
        alpha, sigma = at.alpha.flatten().double(), at.sigma.flatten().double()
        if self._config.weighting == "uniform":
            return torch.ones_like(at.alpha.flatten())
        noise_to_signal = (sigma / alpha).square()  # infinite where nothing is left of the image
        by_signal = {"epsilon": torch.ones_like(alpha), "sample": 1 / noise_to_signal}.get(self.objective, alpha.square())
        if self._config.weighting == "snr":
            return by_signal.float()
        at_most = self._config.gamma * noise_to_signal
        capped = {
            "epsilon": at_most.clamp(max=1), "sample": (1 / noise_to_signal).clamp(max=self._config.gamma)
        }.get(self.objective, torch.minimum(alpha.square(), self._config.gamma * sigma.square()))  # fmt: skip
        return capped.float()


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.float()[:, None, None, None]


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the noise, hashable."""
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    found = {key: settings[key] for key in keys if settings.get(key) is not None}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


@cache
def _cumulated(settings: tuple[tuple[str, Any], ...]) -> torch.Tensor:
    """What is left of an image's variance at each step, float64 [steps]: the product of 1 - beta. Raises UserError."""
    from diffusers import DDPMScheduler

    given = {key: list(value) if isinstance(value, tuple) else value for key, value in settings}
    try:
        left: torch.Tensor = DDPMScheduler(**given).alphas_cumprod.double()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"task.noise: diffusers does not take the schedule ({str(error).splitlines()[0]})") from error
    return left


def process(
    config: Config, saved: Mapping[str, Any] | None, *, latents: bool, flow: bool = False, betas: bool = False
) -> Process:  # fmt: skip
    """The noise of a run: that of the scheduler `saved` with the weights, changed as the run file says; without one the defaults.

    `flow`: the network learns flow alone; `betas`: anything but flow. Raises UserError for a scheduler of another objective, or
    of another kind of noise.
    """
    found = _process(config, saved, latents=latents, flow=flow)
    if flow and found.objective != "flow":
        raise UserError(
            f"task.objective is {found.objective}, and diffusers samples this network by flow alone; write task.objective: flow"
            + (", with task.retarget: true" if saved is not None and _objective(saved) != "flow" else "")
        )
    if betas and found.objective == "flow":
        raise UserError("task.objective is flow, and diffusers' pipeline of this network samples by betas; write epsilon or v")
    if not flow and found.settings.get("use_dynamic_shifting"):
        raise UserError(
            "the scheduler saved with the weights shifts by the size of an image (use_dynamic_shifting), which this network has "
            "no rule for; write one shift for all, such as task.noise.shift: 3"
        )
    return found


def _process(config: Config, saved: Mapping[str, Any] | None, *, latents: bool, flow: bool) -> Process:
    # what diffusers' pipelines of text make of every scheduler that they are given
    usual = {"steps_offset": 1, "clip_sample": False} if config.condition == "text" and latents else {}
    if saved is None:
        objective: str = ("flow" if flow else "epsilon") if config.objective == "auto" else config.objective
        return Process(config, objective, _new(config.noise, objective, latents=latents, usual=usual))
    said = _objective(saved)
    objective = said if config.objective == "auto" else config.objective
    if objective != said and not config.retarget:
        raise UserError(
            f"task.objective is {objective}, and the scheduler saved with the weights says that they were trained for "
            f"{said}; leave it out, or write task.retarget: true to teach them the other one"
        )
    if (objective == "flow") != (said == "flow"):
        return Process(config, objective, _new(config.noise, objective, latents=latents, usual=usual))
    settings = {**saved, **_given(config.noise)}
    for key, value in settings.items():
        if key in saved and saved[key] != value:
            log.warning("task.noise: %s is %s, and %s in the scheduler saved with the weights", key, value, saved[key])
    if objective == "flow" and config.noise.shift is not None and settings.get("use_dynamic_shifting"):
        settings |= {"use_dynamic_shifting": False}  # the one that is asked for, whatever the size
    if objective != "flow":
        settings |= {"prediction_type": _SAYS[objective], **usual}
    if settings.get("rescale_betas_zero_snr") and objective == "epsilon":
        raise UserError(
            "task.noise.zero_snr leaves nothing of an image at the last step, so that its noise says nothing; write "
            "task.objective: v with task.retarget: true"
        )
    return Process(config, objective, settings)


def _objective(saved: Mapping[str, Any]) -> str:
    """What the weights of a saved scheduler say. Raises UserError for noise of another kind."""
    name = str(saved.get("_class_name", ""))
    if name.startswith("FlowMatch") or saved.get("prediction_type") == "flow_prediction":
        return "flow"
    known = _MEANS.get(str(saved.get("prediction_type", "epsilon")))
    if known is None or "num_train_timesteps" not in saved or not ("beta_schedule" in saved or saved.get("trained_betas")):
        raise UserError(
            f"the scheduler saved with the weights ({name}, prediction_type {saved.get('prediction_type')}) adds noise "
            "in a way that is not known here; those with betas (DDPMScheduler and its like) and FlowMatch are"
        )
    return known


def _given(noise: Noise) -> dict[str, Any]:
    """What the run file says, in the words of diffusers."""
    betas = None if noise.betas is None else _BETAS[noise.betas]
    said = {
        "num_train_timesteps": noise.steps, "beta_schedule": betas, "beta_start": noise.start, "beta_end": noise.end,
        "rescale_betas_zero_snr": noise.zero_snr, "shift": noise.shift,
    }  # fmt: skip
    return {key: value for key, value in said.items() if value is not None}


def _new(noise: Noise, objective: str, *, latents: bool, usual: Mapping[str, Any]) -> dict[str, Any]:
    given = _given(noise)
    if objective == "flow":
        return {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": 1.0, **given}
    return {
        "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4,
        "beta_end": 0.02, "rescale_betas_zero_snr": False, "prediction_type": _SAYS[objective], "clip_sample": not latents,
        "clip_sample_range": 1.0, "timestep_spacing": "trailing", **usual, **given,
    }  # fmt: skip
