"""The texts of a generator: the tokenizers and encoders of its pipeline, and what each pipeline makes of what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trainer.models.base import Need
from trainer.models.place import Place
from trainer.models.reader import Reader, named

_AT_ONCE = 4  # texts in every pass, whatever their number, so that none depends on how many came with it
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recipe:
    """What a pipeline makes of texts.

    `kinds`: the class of each of its encoders; `most`: tokens of a text in each, 0: as many as it has places. `shapes`: of what
    comes out for a text, from the readers and what the network wants. `join`: that itself, from what the encoders say. `hidden`:
    it takes the layers in between. `last`: the last encoder may be missing, and says zeros then. `masked`: encoders look at
    the text alone, not at what fills it up, and so is the network told to. `plain`: in small letters. `zeros`: that nothing is
    said are zeros, unless the pipeline says otherwise (`force_zeros_for_empty_prompt`).
    """

    kinds: tuple[str, ...]
    most: tuple[int, ...]
    shapes: Callable[[Sequence[Reader], Mapping[str, Any]], Shapes]
    join: Callable[[Sequence[Any], Shapes], dict[str, torch.Tensor]]
    hidden: bool = False
    last: bool = False
    masked: bool = False
    plain: bool = False
    zeros: bool = False


def _one_shapes(readers: Sequence[Reader], network: Mapping[str, Any]) -> Shapes:
    return {"text": (readers[0].length, readers[0].width)}


def _one(said: Sequence[Any], shapes: Shapes) -> dict[str, torch.Tensor]:
    return {"text": said[0][0]}


def _sd3_shapes(readers: Sequence[Reader], network: Mapping[str, Any]) -> Shapes:
    """Without the last encoder zeros stand for what it says."""
    clip, last = readers[:2], readers[2] if len(readers) > 2 else None
    width = last.width if last is not None else int(network.get("joint_attention_dim") or 4096)
    tokens = clip[0].length + (last.length if last is not None else SD3.most[2])
    return {"text": (tokens, width), "pooled": (sum(reader.pooled for reader in clip),)}


def _sd3(said: Sequence[Any], shapes: Shapes) -> dict[str, torch.Tensor]:
    """Esser et al. 2024, appendix B.3: CLIP's tokens side by side, then T5's one after the other."""
    both = torch.cat([one.hidden_states[-2] for one in said[:2]], dim=-1)
    tokens, width = shapes["text"]
    both = functional.pad(both, (0, width - both.shape[-1]))
    rest = said[2][0] if len(said) > 2 else both.new_zeros(len(both), tokens - both.shape[1], width)
    return {"text": torch.cat([both, rest], dim=1), "pooled": torch.cat([one[0] for one in said[:2]], dim=-1)}


def _flux_shapes(readers: Sequence[Reader], network: Mapping[str, Any]) -> Shapes:
    return {"text": (readers[1].length, readers[1].width), "pooled": (readers[0].width,)}


def _flux(said: Sequence[Any], shapes: Shapes) -> dict[str, torch.Tensor]:
    return {"text": said[1][0], "pooled": said[0].pooler_output}


def _xl_shapes(readers: Sequence[Reader], network: Mapping[str, Any]) -> Shapes:
    return {"text": (readers[0].length, sum(reader.width for reader in readers)), "pooled": (readers[1].pooled,)}


def _xl(said: Sequence[Any], shapes: Shapes) -> dict[str, torch.Tensor]:
    """Podell et al. 2023, section 2.1: the layers before the last side by side."""
    return {"text": torch.cat([one.hidden_states[-2] for one in said], dim=-1), "pooled": said[1][0]}


def _pixart_shapes(readers: Sequence[Reader], network: Mapping[str, Any]) -> Shapes:
    return {**_one_shapes(readers, network), "mask": (readers[0].length,)}


SD = Recipe(("CLIPTextModel",), (0,), _one_shapes, _one)
SD3 = Recipe(
    ("CLIPTextModelWithProjection", "CLIPTextModelWithProjection", "T5EncoderModel"), (0, 0, 256), _sd3_shapes, _sd3,
    hidden=True, last=True,
)  # fmt: skip
FLUX = Recipe(("CLIPTextModel", "T5EncoderModel"), (0, 512), _flux_shapes, _flux)
XL = Recipe(("CLIPTextModel", "CLIPTextModelWithProjection"), (0, 0), _xl_shapes, _xl, hidden=True, zeros=True)
ALPHA = Recipe(("T5EncoderModel",), (120,), _pixart_shapes, _one, masked=True, plain=True)


def recipe_of(index: Mapping[str, Any]) -> Recipe:
    """That of a pipeline, by what its `model_index.json` says."""
    network = named(index, "transformer")
    if network == "PixArtTransformer2DModel":
        return replace(ALPHA, most=(300,)) if index.get("_class_name") == "PixArtSigmaPipeline" else ALPHA
    if named(index, "unet") is not None and named(index, "text_encoder_2") is not None:
        return XL
    return {"SD3Transformer2DModel": SD3, "FluxTransformer2DModel": FLUX}.get(network or "", SD)


class Words:
    """The text encoders of a pipeline, read when they are first needed.

    `shapes`: of what they give of a text, by name; `length`: tokens that the one with the longest view sees; `zeros`: they are
    what says nothing. They compute in 32 bits whatever the training's precision.
    """

    def __init__(self, place: str) -> None:
        self.source = place
        where = Place.of(place)
        index = where.json("model_index.json") or {}
        self.pipeline = str(index.get("_class_name"))
        recipe = recipe_of(index)
        self._recipe = recipe
        self.zeros = recipe.zeros and index.get("force_zeros_for_empty_prompt") is not False
        self._readers = [
            Reader(where, f"_{place + 1}" if place else "", kind, most)
            for place, (kind, most) in enumerate(zip(recipe.kinds, recipe.most, strict=True))
            if not (recipe.last and place == len(recipe.kinds) - 1 and named(index, f"text_encoder_{place + 1}") is None)
        ]
        clip = [reader for reader in self._readers if reader.kind.startswith("CLIP")]
        for reader in clip:
            reader.length = min(one.length for one in clip)
        self.shapes = recipe.shapes(self._readers, where.json("transformer/config.json") or {})
        self._unread = False
        self._longest = max(self._readers, key=lambda reader: reader.length)
        self.length = self._longest.length

    @staticmethod
    def beside(place: str) -> str | None:
        """The place, if it is a pipeline with a text encoder."""
        index = Place.of(place).json("model_index.json") or {}
        return place if isinstance(index.get("text_encoder"), list) and index["text_encoder"][0] else None

    def needs(self) -> list[Need]:
        """The files that they are read from."""
        return [need for reader in self._readers for need in reader.needs()]

    def to(self, device: torch.device) -> None:
        """Read the encoders, where that was not done, and move them to a device. Raises UserError."""
        for reader in self._readers:
            if next(reader.network.parameters()).device != device:
                reader.network.to(device)

    def leave(self) -> None:
        """Never read the weights: the network is one without values from here on, and nothing can be encoded."""
        self._unread = True

    @property
    def network(self) -> nn.Module:
        """The encoder, with its weights unless they are left; of several all of them."""
        found = {reader.part: reader.shell if self._unread else reader.network for reader in self._readers}
        return next(iter(found.values())) if len(found) == 1 else nn.ModuleDict(found)

    @property
    def parts(self) -> dict[str, Any]:
        """Tokenizers and encoders by the names that the pipeline has for them; CLIP's cut texts where they are cut here."""
        found: dict[str, Any] = {}
        for place in range(len(self._recipe.kinds)):
            number = f"_{place + 1}" if place else ""
            found |= {f"tokenizer{number}": None, f"text_encoder{number}": None}
        for reader in self._readers:
            if reader.kind.startswith("CLIP"):
                reader.tokenizer.model_max_length = reader.length
            found |= {reader.cutter: reader.tokenizer, reader.part: reader.network}
        return found

    def encode(self, texts: Sequence[str | None], device: torch.device) -> dict[str, torch.Tensor]:
        """By name float32 [n, …] on the device, of texts cut to so many tokens as each encoder sees; None: nothing is said."""
        self.to(device)
        found = []
        for start in range(0, len(texts), _AT_ONCE):
            part = [text or "" for text in texts[start : start + _AT_ONCE]]
            found.append(self._encode(part + [""] * (_AT_ONCE - len(part)), device))
        whole = {name: torch.cat([one[name] for one in found])[: len(texts)] for name in self.shapes}
        silent = [place for place, text in enumerate(texts) if text is None and self.zeros]
        for value in whole.values():
            value[silent] = 0
        return whole

    def _encode(self, texts: Sequence[str], device: torch.device) -> dict[str, torch.Tensor]:
        said, recipe, found = [], self._recipe, {}
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for reader in self._readers:
                tokens = reader.tokens([text.lower().strip() for text in texts] if recipe.plain else texts).to(device)
                more: dict[str, Any] = {"attention_mask": tokens.attention_mask} if recipe.masked else {}
                if recipe.hidden and reader.kind.startswith("CLIP"):
                    more["output_hidden_states"] = True
                said.append(reader.network(tokens.input_ids, **more))
                found = {"mask": tokens.attention_mask} if recipe.masked else {}
            return {name: value.float() for name, value in (recipe.join(said, self.shapes) | found).items()}

    def too_long(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """The texts of which no encoder sees the end, each with its number of tokens."""
        return self._longest.too_long(texts)
