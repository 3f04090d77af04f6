"""Which filters the channels of an input get: the three rules of the field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from trainer.config import UserError, nearest
from trainer.config.adapt import OLD_CHANNELS, Adapt

Picks = list[int | None]


def filters(weight: torch.Tensor, adapt: Adapt) -> tuple[torch.Tensor, str | None]:
    """Filters [out, old, h, w] for the channels of the run file, and what was done; none where nothing was.

    repeat: timm's `adapt_input_conv`, see `channels_of`. zero: the first channels keep their filters, further ones are zero
    (fastai's `vision_learner`, and the conditions of diffusers' InstructPix2Pix). map: each channel takes the filters of the
    channel of that name, or of the one it is mapped to, unscaled; others are zero. Raises UserError for a name that the old
    layer does not have.
    """
    old, new = weight.shape[1], adapt.in_channels
    if adapt.channels == "repeat":
        if old == new:
            return weight, None
        told = f"{old} input channels summed into 1" if new == 1 else f"{old} input channels repeated over {new}"
        return channels_of(weight, new), told
    chosen = picks(old, adapt)
    if chosen == list(range(old)):
        return weight, None
    zero = torch.zeros_like(weight[:, :1])
    filled = torch.cat([zero if pick is None else weight[:, pick : pick + 1] for pick in chosen], dim=1)
    if adapt.channels == "zero":
        told = f"the first {min(old, new)} of {old} input channels kept" + (f", {new - old} begin at zero" if new > old else "")
    else:
        names = _old_names(old)
        pairs = zip(adapt.channel_names, chosen, strict=True)
        told = "input channels " + ", ".join(f"{name}: {'zero' if pick is None else names[pick]}" for name, pick in pairs)
    return filled, told


def outputs_of(
    value: torch.Tensor, shape: torch.Size, old: int, adapt: Adapt
) -> tuple[torch.Tensor, str | None] | None:  # fmt: skip
    """Weights or biases [outputs, …] of a layer that gives `old` channels, for those of the run file, and what was done.

    A layer may give several pixels at once (the channel varying fastest), and twice as many channels (also their variances). By
    the rule repeat the old channels come in turn, one channel is their mean; by zero further ones begin at zero; by map each
    is the old one of its name, or zero. None where the shapes do not fit.
    """
    new = adapt.in_channels
    if shape[0] % new or value.shape[0] % old or shape[0] // new != value.shape[0] // old or shape[1:] != value.shape[1:]:
        return None
    if adapt.channels == "repeat":
        chosen: Picks = [index % old for index in range(new)]
    else:
        chosen = picks(old, adapt)
    if chosen == list(range(old)):
        return value, None
    parts = value.reshape(value.shape[0] // old, old, *value.shape[1:])
    if adapt.channels == "repeat" and new == 1:
        return parts.mean(dim=1).reshape(shape), f"the mean of {old} output channels"
    zero = torch.zeros_like(parts[:, :1])
    found = torch.cat([zero if pick is None else parts[:, pick : pick + 1] for pick in chosen], dim=1)
    return found.reshape(shape), f"{old} output channels to {new} by the rule {adapt.channels}"


def picks(old: int, adapt: Adapt) -> Picks:
    """For each channel of the input the old channel whose filters it takes; none: zero. For the rules zero and map."""
    if adapt.channels == "zero":
        return [index if index < old else None for index in range(adapt.in_channels)]
    names = _old_names(old)
    for name, source in adapt.channel_map.items():
        if source not in names:
            raise UserError(
                f"model.adapt.channel_map: '{name}: {source}', and the network's channels are {', '.join(names)}"
                f"{nearest(source, names)}"
            )
    wanted = [adapt.channel_map.get(name, name) for name in adapt.channel_names]
    found: Picks = [names.index(name) if name in names else None for name in wanted]
    if all(pick is None for pick in found):
        raise UserError(
            f"model.adapt.channel_names: none of {', '.join(adapt.channel_names)} is one of the network's ({', '.join(names)}), "
            "so all filters would be zero; map at least one with channel_map"
        )
    return found


def normalisation(values: Sequence[float], adapt: Adapt) -> tuple[float, ...]:
    """Means or deviations of the old channels for those of the input: a channel keeps what its filters were trained with.

    A channel without old filters, and every channel under `repeat`, has the average.
    """
    average = round(float(torch.tensor(values, dtype=torch.float64).mean()), 6)
    if adapt.channels == "repeat":
        return tuple(values) if len(values) == adapt.in_channels else (average,) * adapt.in_channels
    return tuple(average if pick is None else values[pick] for pick in picks(len(values), adapt))


def channels_of(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Filters [out, old, h, w] for `channels` input channels.

    One channel: the filters' sum, so that a grey image gives what it gave when it was repeated over the old channels. Otherwise
    they are repeated in turn and scaled by old / channels, which keeps the size of the response. It is the rule of the timm
    library (`adapt_input_conv`).
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight.repeat(1, math.ceil(channels / old), 1, 1)[:, :channels] * (old / channels)


def _old_names(old: int) -> tuple[str, ...]:
    return OLD_CHANNELS.get(old, tuple(str(index) for index in range(old)))
