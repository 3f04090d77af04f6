"""One encoder of texts of a pipeline with its tokenizer: they stay as they are."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.models.base import Need
from trainer.models.place import Place

TOKENIZERS = {
    "CLIPTextModel": ("CLIPTokenizer",),
    "CLIPTextModelWithProjection": ("CLIPTokenizer",),
    "T5EncoderModel": ("T5Tokenizer", "T5TokenizerFast"),
}
_SETTINGS = {"CLIPTextModel": "CLIPTextConfig", "CLIPTextModelWithProjection": "CLIPTextConfig", "T5EncoderModel": "T5Config"}
_FILES = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "vocab.json", "merges.txt", "spiece.model")


class Reader:
    """`text_encoder` and `tokenizer` of a pipeline, or those with a number after them, read when they are first needed.

    `kind`: the class of the encoder; `length`: tokens of a text, `most` of them at most, where that is not what the encoder has
    places for; `width`: numbers for each token, `pooled`: numbers for a whole text. Raises UserError for other classes.
    """

    def __init__(self, place: Place, number: str, kind: str, most: int) -> None:
        self._place, self.number, self.kind = place, number, kind
        self.part, self.cutter = f"text_encoder{number}", f"tokenizer{number}"
        index = place.json("model_index.json") or {}
        for part, known in ((self.cutter, TOKENIZERS[kind]), (self.part, (kind,))):
            name = named(index, part)
            if name not in known:
                what = f"is a {name}" if name else "is missing"
                raise UserError(f"{place.name}: its {part} {what}; a text goes through {' or '.join(known)}")
        settings = place.json(f"{self.part}/config.json") or {}
        self.settings: dict[str, Any] = settings
        self.width = int(settings.get("hidden_size") or settings.get("d_model") or 512)
        self.pooled = int(settings.get("projection_dim") or 512) if kind == "CLIPTextModelWithProjection" else self.width
        said = (place.json(f"{self.cutter}/tokenizer_config.json") or {}).get("model_max_length") or 10**9
        self.length = most or min(int(settings.get("max_position_embeddings") or 77), int(said))
        self._parts: tuple[Any, nn.Module] | None = None
        self._shell: nn.Module | None = None

    def needs(self) -> list[Need]:
        """The files that they are read from."""
        others = (f"{self.part}/config.json", *(f"{self.cutter}/{name}" for name in _FILES))
        return self._place.needs(
            f"the {self.part.replace('_', ' ')} of {self._place.name}", others, f"{self.part}/model",
            (f"{self.part}/pytorch_model",),
        )  # fmt: skip

    @property
    def tokenizer(self) -> Any:
        return self._read()[0]

    @property
    def network(self) -> nn.Module:
        """The encoder, with its weights."""
        return self._read()[1]

    @property
    def shell(self) -> nn.Module:
        """The encoder without values, on torch's meta device: its settings alone are read. Raises UserError."""
        if self._shell is None:
            with torch.device("meta"):
                self._shell = self._made(importlib.import_module("transformers")).eval().requires_grad_(False)
        return self._shell

    def tokens(self, texts: Sequence[str]) -> Any:
        """`input_ids` and `attention_mask` [n, length] of texts cut to `length` tokens."""
        asked = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_attention_mask": True}
        return self.tokenizer(list(texts), **asked, return_tensors="pt")

    def too_long(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """The texts that are cut, each with its number of tokens."""
        lengths = [len(self.tokenizer(text, truncation=False, verbose=False).input_ids) for text in texts]
        return [(text, count) for text, count in zip(texts, lengths, strict=True) if count > self.length]

    def _read(self) -> tuple[Any, nn.Module]:
        if self._parts is None:
            transformers: Any = importlib.import_module("transformers")
            large = self.kind == "T5EncoderModel"  # without values first: billions of numbers are drawn for minutes
            with torch.device("meta") if large else nullcontext():
                encoder = self._made(transformers)
            self._fill(encoder, self._place.weights(f"{self.part}/model", (f"{self.part}/pytorch_model",)))
            self._parts = self._tokenizer(transformers), encoder.eval().requires_grad_(False)
        return self._parts

    def _made(self, transformers: Any) -> nn.Module:
        try:
            config = getattr(transformers, _SETTINGS[self.kind])(**self.settings)
            with torch.random.fork_rng(devices=[]):
                encoder: nn.Module = getattr(transformers, self.kind)(config)
        except Exception as error:  # whatever the library raises for its settings
            told = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise UserError(f"{self._place.name}: transformers does not take its {self.part}/config.json ({told})") from error
        return encoder

    def _fill(self, encoder: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        own = encoder.state_dict()
        given = {name.removeprefix("text_model."): value for name, value in tensors.items()}
        for name, other in (("shared.weight", "encoder.embed_tokens.weight"), ("encoder.embed_tokens.weight", "shared.weight")):
            if name in own and name not in given and other in given:  # T5 has its table of words twice
                given[name] = given[other]
        values = {name: given.get(name.removeprefix("text_model.")) for name in own}
        lacking = [name for name, value in values.items() if value is None or value.shape != own[name].shape]
        lacking = [name for name in lacking if not name.endswith("position_ids")]
        if lacking:
            raise UserError(f"{self._place.name}: the weights of its {self.part} have no '{lacking[0]}' of its shape: partial")
        given = {name: own[name] if value is None else value for name, value in values.items()}
        whole = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
        encoder.load_state_dict(whole, assign=any(value.is_meta for value in own.values()))

    def _tokenizer(self, transformers: Any) -> Any:
        files = [file for name in _FILES if (file := self._place.find(f"{self.cutter}/{name}")) is not None]
        if not files:
            raise UserError(f"{self._place.name}: its {self.cutter} has no files ({', '.join(_FILES)}): partial")
        try:
            made = getattr(transformers, TOKENIZERS[self.kind][0]).from_pretrained(str(files[0].parent), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{self._place.name}: its {self.cutter} cannot be read ({told}): partial") from error
        return made


def named(index: Mapping[str, Any], part: str) -> str | None:
    """The class of a part of a pipeline, as its index says; none where there is none."""
    said = index.get(part)
    return str(said[1]) if isinstance(said, list) and len(said) == 2 and said[1] else None
