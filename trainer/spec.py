"""What a network takes and gives, as values that the rooms share without knowing each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class InputSpec:
    """An image as the network takes it: [in_channels, image_size, image_size], pixels in [0, 1] then (x - mean) / std.

    `interpolation`: how images were resized for its weights; the run file may say otherwise.
    """

    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class Output:
    """What a head gives for an image: one number for each of `labels` (class names, or the names of measured values).

    `name` is empty for the only head of a network. Whatever their number, a network returns one tensor [n, all labels]: the heads
    side by side in the order of the outputs, so that what a library does to the output of its head (pools it, flattens it) stays
    right; the task cuts it apart.
    """

    name: str
    labels: tuple[str, ...]
    kind: Literal["class", "labels", "values"] = "class"  # one of the labels; each of them or not; a number for each


def labels_of(outputs: tuple[Output, ...]) -> tuple[str, ...]:
    """The labels of all heads, side by side; those of several heads with the heads' names before them."""
    if len(outputs) == 1:
        return outputs[0].labels
    return tuple(f"{output.name}/{label}" for output in outputs for label in output.labels)


@dataclass(frozen=True)
class Generator:
    """A network that makes images of noise: it takes noised ones [n, c, h, w] with their times [n] and gives as much of each.

    `classes`: it is told which of these an image is of, by number; none: nothing. `dropped`: it also knows the number after the
    last class, which says that the class is not told (Ho and Salimans 2022). `text`: it is told a text instead, by the encoder of
    its pipeline. `vae`: the images are the latents of an autoencoder, that of its own pipeline (`pipeline`) or another source;
    none: pixels. `source`: it is given another picture beside each noised one, as further channels, as many as that has.
    `distilled`: how strongly it is guided, for a network that is told that; none: as is usual.
    """

    classes: tuple[str, ...] = ()
    dropped: bool = False
    vae: str | None = None
    text: bool = False
    source: bool = False
    distilled: float | None = None


@dataclass(frozen=True)
class Pair(Generator):
    """A network that makes images [n, c, h, w] in [-1, 1] of latents [n, latent], which it names as its `latent`, and a critic
    that says of images by numbers [n, …] how real they are. Both are told the classes, where there are any.
    """


@dataclass(frozen=True)
class Translator:
    """A network that makes pictures [n, channels, h, w] in [-1, 1] of pictures of the same size.

    `width`: of the decoder that a trunk without one gets, in channels at full resolution. `residual`: whether what it gives is
    added to its input; none: `alike` says it of a new decoder, and any other network is what it was.
    """

    channels: int
    width: int
    residual: bool | None = None
    alike: bool = False


@dataclass(frozen=True)
class Reconstructor:
    """A network that makes pictures again of latents: called with images and noise [n, *latents], or without noise, it gives
    pictures, means and logarithms of the variances of the latents. Its `latents`: their channels, and how much smaller they are.
    """


@dataclass(frozen=True)
class Cyclic:
    """Two networks that make pictures of each other's: called with pictures of both kinds in [-1, 1], and whether each is also to
    be given what it should make, they give what each makes, what the other makes of that again, and what each made of what it
    should make, if that was asked for.

    `forth`: the first one; the way back is a network like it that makes the channels which this one takes. `back`: the settings
    of that network (`trainer.config.model.Model`), where it is another one.
    """

    forth: Translator
    back: Any = None


@dataclass(frozen=True)
class Critic:
    """A network that tells pictures [n, channels, h, w] that are real from others, by patches.

    `rate`: factor on the learning rate.
    """

    channels: int
    width: int
    layers: int
    rate: float


Wanted = tuple[Output, ...] | Generator | Translator | Reconstructor | Cyclic  # what a task asks of a network
# (the network as it is called, noised images, times, what it is told besides, each [n, …]) -> what it makes of them
Call = Callable[[nn.Module, torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]


class Autoencoder(Protocol):
    """Between images [n, c, h, w] in [-1, 1] and latents [n, channels, h / factor, w / factor] as a generator takes them.

    `source`: where it is, FOLDER#PART.
    """

    source: str
    channels: int
    factor: int

    @property
    def network(self) -> nn.Module:
        """The autoencoder itself, with its weights."""

    def to(self, device: torch.device) -> None:
        """Read its weights, where that was not done, and move it to a device. Raises UserError."""

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the latents of images."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The images of latents."""


class TextEncoder(Protocol):
    """What turns texts into numbers for a generator: by name, in `shapes` for each text.

    `source`: the pipeline that it is of, and `pipeline` its class; `length`: tokens of a text that it sees; `zeros`: they are
    what says nothing.
    """

    source: str
    pipeline: str
    length: int
    shapes: dict[str, tuple[int, ...]]
    zeros: bool

    @property
    def parts(self) -> dict[str, Any]:
        """What cuts texts into tokens, and what reads them, by the names that pipelines have for them."""

    @property
    def network(self) -> nn.Module:
        """The encoder itself, with its weights unless they are left; of several all of them."""

    def to(self, device: torch.device) -> None:
        """Read its weights, where that was not done, and move it to a device. Raises UserError."""

    def leave(self) -> None:
        """Never read its weights: the network is one without values from here on."""

    def encode(self, texts: Sequence[str | None], device: torch.device) -> dict[str, torch.Tensor]:
        """By name float32 [n, …] on the device; None: nothing is said."""

    def too_long(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """The texts of which the end is not seen, each with its number of tokens."""


class Judge(Protocol):
    """A network whose features of images, uint8 [n, c, h, w], tell how like each other two sets of images are.

    `widths`: features by layer; `layers`: the layer that each measure looks at; `name`: whose features they are.
    """

    @property
    def name(self) -> str: ...
    @property
    def widths(self) -> Mapping[str, int]: ...
    @property
    def layers(self) -> Mapping[str, str]: ...

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features float32 [n, width] on the CPU, by layer."""


@dataclass(frozen=True)
class Flow:
    """A network that learns flow alone (Liu et al. 2023), and how it is sampled.

    `patch`: side of the squares that it sees as one place each; the more there are the more noise there is, where a scheduler
    shifts by that. `even`: in even steps, down to one before none.
    """

    patch: int
    even: bool = False


@dataclass(frozen=True)
class Beside:
    """What a task must know of a generator besides the network itself.

    `call` sends a batch through it; `channels` and `size` are those of what it makes: of latents, where there is a `vae`;
    `image` are channels and size of an image. `schedule`: the settings of the scheduler that its weights were trained with, as
    diffusers saved them, where that is known. `source`: `call` also takes a picture [n, channels, size, size] of this name.
    `flow`: it learns flow alone; `betas`: anything but flow. `problem(height, width)`: why it does not make what is so large;
    none in its place where it makes one size alone.
    """

    call: Call
    channels: int
    size: int
    image: tuple[int, int]
    schedule: Mapping[str, Any] | None = None
    vae: Autoencoder | None = None
    text: TextEncoder | None = None
    source: bool = False
    flow: Flow | None = None
    betas: bool = False
    problem: Callable[[int, int], str | None] | None = None


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that learn alike, by name: `rate` is the factor on the learning rate, `start` the samples that come before;
    without `decay`, weight decay leaves them alone."""

    parameters: list[tuple[str, nn.Parameter]]
    rate: float = 1.0
    start: int = 0
    decay: bool = True


@dataclass(frozen=True)
class Piece:
    """What one rank holds of a tensor of this `shape`: `values`, one behind the other, are those from place `start` of it on."""

    values: torch.Tensor
    start: int
    shape: tuple[int, ...]
