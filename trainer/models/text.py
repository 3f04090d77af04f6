"""The texts of a generator: the tokenizer and the encoder of its pipeline, which stay as they are."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.models.base import Need
from trainer.models.place import Place

ENCODERS = ("CLIPTextModel",)
TOKENIZERS = ("CLIPTokenizer",)
_FILES = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "vocab.json", "merges.txt")
_AT_ONCE = 4  # texts in every pass, whatever their number, so that none depends on how many came with it


class Words:
    """The text encoder of a pipeline (`text_encoder`, `tokenizer`), read when it is first needed.

    `length`: tokens of a text, `width`: numbers for each of them. It computes in 32 bits whatever the training's precision.
    """

    def __init__(self, place: str) -> None:
        self.source = place
        self._place = Place.of(place)
        index = self._place.json("model_index.json") or {}
        for part, known in (("tokenizer", TOKENIZERS), ("text_encoder", ENCODERS)):
            said = index.get(part)
            name = said[1] if isinstance(said, list) and len(said) == 2 else None
            if name not in known:
                what = f"is a {name}" if name else "is missing"
                raise UserError(f"{self._place.name}: its {part} {what}; a text goes through {' or '.join(known)}")
        self.settings: dict[str, Any] = self._place.json("text_encoder/config.json") or {}
        self.width = int(self.settings.get("hidden_size") or 512)
        self.length = int(self.settings.get("max_position_embeddings") or 77)
        self._parts: tuple[Any, nn.Module] | None = None

    @staticmethod
    def beside(place: str) -> str | None:
        """The place, if it is a pipeline with a text encoder."""
        index = Place.of(place).json("model_index.json") or {}
        return place if isinstance(index.get("text_encoder"), list) and index["text_encoder"][0] else None

    def needs(self) -> list[Need]:
        """The files that they are read from."""
        others = ("text_encoder/config.json", *(f"tokenizer/{name}" for name in _FILES))
        return self._place.needs(
            f"the text encoder of {self.source}", others, "text_encoder/model", ("text_encoder/pytorch_model",)
        )

    def _read(self) -> tuple[Any, nn.Module]:
        if self._parts is None:
            transformers: Any = importlib.import_module("transformers")
            try:
                config = transformers.CLIPTextConfig(**self.settings)
                with torch.random.fork_rng(devices=[]):
                    encoder: nn.Module = transformers.CLIPTextModel(config)
            except Exception as error:  # whatever the library raises for its settings
                told = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                raise UserError(
                    f"{self._place.name}: transformers does not take its text_encoder/config.json ({told})"
                ) from error
            self._fill(encoder, self._place.weights("text_encoder/model", ("text_encoder/pytorch_model",)))
            self._parts = self._tokenizer(transformers), encoder.eval().requires_grad_(False)
        return self._parts

    def _fill(self, encoder: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        own = encoder.state_dict()
        given = {name.removeprefix("text_model."): value for name, value in tensors.items()}
        values = {name: given.get(name.removeprefix("text_model.")) for name in own}
        lacking = [name for name, value in values.items() if value is None or value.shape != own[name].shape]
        lacking = [name for name in lacking if not name.endswith("position_ids")]
        if lacking:
            raise UserError(f"{self._place.name}: the weights of its text encoder have no '{lacking[0]}' of its shape: partial")
        encoder.load_state_dict({name: own[name] if value is None else value for name, value in values.items()})

    def _tokenizer(self, transformers: Any) -> Any:
        files = [file for name in _FILES if (file := self._place.find(f"tokenizer/{name}")) is not None]
        if not files:
            raise UserError(f"{self._place.name}: its tokenizer has no files ({', '.join(_FILES)}): partial")
        try:
            made = transformers.CLIPTokenizer.from_pretrained(str(files[0].parent), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{self._place.name}: its tokenizer cannot be read ({told}): partial") from error
        self.length = min(self.length, int(made.model_max_length))
        return made

    def to(self, device: torch.device) -> None:
        """Read the encoder, where that was not done, and move it to a device. Raises UserError."""
        _, encoder = self._read()
        if next(encoder.parameters()).device != device:
            encoder.to(device)

    @property
    def network(self) -> nn.Module:
        """The encoder, with its weights."""
        return self._read()[1]

    @property
    def tokenizer(self) -> Any:
        return self._read()[0]

    def encode(self, texts: Sequence[str], device: torch.device) -> torch.Tensor:
        """[n, length, width] float32 on the device, of texts cut to `length` tokens."""
        self.to(device)
        tokenizer, encoder = self._read()
        found = []
        for start in range(0, len(texts), _AT_ONCE):
            part = list(texts[start : start + _AT_ONCE])
            part += [""] * (_AT_ONCE - len(part))
            ids = tokenizer(part, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt").input_ids
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                found.append(encoder(ids.to(device))[0].float())
        return torch.cat(found)[: len(texts)]

    def too_long(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """The texts that are cut, each with its number of tokens."""
        tokenizer, _ = self._read()
        lengths = [len(tokenizer(text, truncation=False, verbose=False).input_ids) for text in texts]
        return [(text, count) for text, count in zip(texts, lengths, strict=True) if count > self.length]
