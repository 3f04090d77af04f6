"""What stands beside a generator: whether its autoencoder and its text encoders are those that it goes with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trainer.config import UserError
from trainer.models.autoencoder import Codec
from trainer.models.text import Words
from trainer.spec import Generator

if TYPE_CHECKING:
    from trainer.models.generator import Denoiser

log = logging.getLogger("graft")
_EIGHT = 8  # pixels that diffusers' older pipelines count in, whatever the autoencoder


def refuse_latents(source: Denoiser, codec: Codec | None, size: int) -> None:
    """Raises UserError for what the pipeline of the network could make no pictures of."""
    if source.latents and (codec is None or codec.kind not in source.latents):
        said = "task.vae is none" if codec is None else f"{codec.name} is a {codec.kind}"
        raise UserError(f"{source.name}: makes latents of an {' or '.join(source.latents)}, and {said}; write task.vae: pipeline")
    if source.betas and codec is not None and codec.shift:
        raise UserError(
            f"{codec.name}: shifts its latents (shift_factor), which the pipelines for {source.name} do not look at; write the "
            "autoencoder that it was trained with"
        )
    if source.betas and size % _EIGHT:
        below = size // _EIGHT * _EIGHT
        near = [str(one) for one in (below, below + _EIGHT) if one]
        raise UserError(
            f"{source.name}: its pipeline makes images of multiples of {_EIGHT} pixels, and model.adapt.image_size is {size}; "
            f"write {' or '.join(near)}"
        )


def warn_of_latents(source: Denoiser, codec: Codec | None) -> None:
    """Say where a generator was not trained on what it is given now."""
    if source.read is None:
        return
    if codec is None and source.vae is not None:
        log.warning("%s was trained on latents, and task.vae is none: it learns on pixels; write task.vae: pipeline", source.name)
    if codec is not None and source.channels not in (None, codec.channels):
        log.warning(
            "task.vae: %s has latents of %d channels, and %s was trained on %d: its input and output are adapted, and have to be "
            "learnt; write the autoencoder that it was trained with", codec.name, codec.channels, source.name, source.channels,
        )  # fmt: skip


def words_of(source: Denoiser, wanted: Generator) -> Words | None:
    """The text encoder of a generator that is told texts. Raises UserError where one of the two is missing."""
    silent = wanted.source and source.text and not wanted.text  # it is told the empty text
    if bool(source.text) != wanted.text and not silent:
        raise UserError(
            f"{source.name}: is told a text; write task.condition: text (the names of classes are texts as well)"
            if source.text
            else f"{source.name}: is told no text; write task.condition: class, or none"
        )
    if not source.text:
        return None
    if source.words is None:
        raise UserError(f"{source.name}: is told a text, and there is no text encoder beside it; name the folder of its pipeline")
    words = Words(source.words)
    for name, shape in source.text.items():
        given = words.shapes.get(name)
        if given is None or shape[-1] not in (0, given[-1]):
            raise UserError(
                f"{source.name}: is told texts of {shape[-1]} numbers {'a token' if len(shape) > 1 else 'in all'}, and the text "
                f"encoder beside it gives {given[-1] if given else 'none'}; it is that of another network"
            )
    return words
