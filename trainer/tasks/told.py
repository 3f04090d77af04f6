"""What a generator is told of an image, by number: a class, a text, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch

from trainer.config import UserError, nearest
from trainer.spec import TextEncoder

log = logging.getLogger("graft")
NOTHING = -1  # the number of the empty text
_HELD = 1 << 30  # bytes of encoded texts that are held


class Told:
    """Nothing at all, where there are no words."""

    nothing: int | None = None  # the number that says that nothing is told

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.words = list(words)

    def __call__(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the network is told of these numbers, int64 [n]."""
        return {}

    def number(self, word: str) -> int:
        """The number of a word. Raises UserError for one that it does not know."""
        raise UserError(f"'{word}': the network was told nothing of the images (task.condition: none)")

    def ready(self, device: torch.device) -> None:
        """Work out what can be worked out once."""


class Classes(Told):
    """One of some classes; the number after the last says that the class is not told, where the network knows that."""

    def __init__(self, words: Sequence[str], *, dropped: bool) -> None:
        super().__init__(words)
        self.nothing = len(self.words) if dropped else None

    def __call__(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"classes": numbers}

    def number(self, word: str) -> int:
        if word not in self.words:
            raise UserError(f"there is no class '{word}'{nearest(word, self.words)}")
        return self.words.index(word)


class Texts(Told):
    """Any text; those of the data come first. The empty text says that nothing is told."""

    nothing: int | None = NOTHING

    def __init__(self, captions: Sequence[str], template: str) -> None:
        super().__init__([template.replace("{}", caption) for caption in captions])
        self._numbers = {text: number for number, text in enumerate(self.words)}
        self._template = template
        self.encoder: TextEncoder | None = None
        self._held: dict[int, dict[str, torch.Tensor]] = {}

    def number(self, word: str) -> int:
        """The number of any text; one that the encoder sees only the beginning of is warned of."""
        if word not in self._numbers:
            self._numbers[word] = len(self.words)
            self.words.append(word)
            self._warn([word])
        return self._numbers[word]

    def caption(self, text: str) -> int:
        """The number of a caption of the data, which is put into the template."""
        return self.number(self._template.replace("{}", text))

    def __call__(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        wanted = numbers.tolist()
        self._hold(dict.fromkeys(wanted), numbers.device)
        assert self.encoder is not None
        return {
            name: torch.stack([self._held[number][name] for number in wanted]).to(numbers.device, non_blocking=True)
            for name in self.encoder.shapes
        }

    def ready(self, device: torch.device) -> None:
        """Encode the texts of the data, as far as there is room to hold them, and say which are cut."""
        self._warn(self.words)
        self._hold([NOTHING], device)
        self._hold(range(min(len(self.words), self._room - 1)), device)

    @property
    def _room(self) -> int:
        """How many texts can be held, which are all of one size."""
        one = next(iter(self._held.values()))
        return max(1, _HELD // sum(value.nbytes for value in one.values()))

    def _warn(self, texts: Sequence[str]) -> None:
        """Say how many texts are too long."""
        assert self.encoder is not None
        long = self.encoder.too_long(texts)
        if long:
            text, tokens = long[0]
            log.warning(
                "%d of %d texts have more tokens than the %d that the encoder sees, and are cut: '%s …' has %d; shorten them",
                len(long), len(texts), self.encoder.length, text[:60], tokens,
            )  # fmt: skip

    def _hold(self, wanted: Iterable[int], device: torch.device) -> None:
        """Encode what is not held, on the CPU; for want of room go those that came first and are not wanted now."""
        assert self.encoder is not None
        numbers = dict.fromkeys(wanted)
        new = [number for number in numbers if number not in self._held]
        if not new:
            return
        found = self.encoder.encode([None if number == NOTHING else self.words[number] for number in new], device)
        kept = {name: value.cpu() for name, value in found.items()}
        self._held |= {number: {name: value[place] for name, value in kept.items()} for place, number in enumerate(new)}
        over = len(self._held) - self._room
        for number in [held for held in self._held if held != NOTHING and held not in numbers][: max(0, over)]:
            del self._held[number]


class Silence(Texts):
    """The empty text, whatever the number: of a network that is told texts, and learns from pictures without any."""

    def __init__(self) -> None:
        super().__init__((), "{}")
        self.nothing = None

    def __call__(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().__call__(torch.full_like(numbers, NOTHING))


class Unread(Told):
    """Texts of an encoder whose weights are not read: zeros of their shapes, and the same `nothing`."""

    def __init__(self, texts: Texts) -> None:
        super().__init__(texts.words)
        assert texts.encoder is not None
        self.nothing, self._shapes = texts.nothing, texts.encoder.shapes

    def __call__(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(len(numbers), *shape, device=numbers.device) for name, shape in self._shapes.items()}
