"""Changes of images that gradients go through, for a critic that has seen all the real ones (Zhao et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from trainer.config.tasks.gan import Change
from trainer.tasks import draws

SHIFT, HOLE = 1 / 8, 1 / 2  # of the side: the furthest translation, and the side of what is cut out
Draw = Callable[[], torch.Tensor]  # the next number in [0, 1) of each image, float32 [n, 1, 1, 1]


def augmented(
    images: torch.Tensor, changes: Sequence[Change], share: torch.Tensor, seed: int, stream: int, *columns: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """Images [n, c, h, w] in [-1, 1], each changed in each way with probability `share`: which and by how much are functions of
    (seed, stream, columns) alone, the columns being whole numbers [n]. As many streams after it are taken as there are draws.
    """
    taken = 0

    def draw() -> torch.Tensor:
        nonlocal taken
        taken += 1
        found = draws.uniform(draws.keys(seed, stream + taken - 1, *columns))
        return found.to(torch.float32)[:, None, None, None]

    for change in changes:
        chosen = draw() < share
        images = torch.where(chosen, _CHANGES[change](images, draw), images)
    return images


def _color(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Brightness, then saturation, then contrast, as the authors have them."""
    images = images + (draw() - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * draw())
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (draw() + 0.5)


def _translation(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Moved by whole pixels in both directions; what comes in is 0.

    As products with matrices of ones and zeros: gathering pixels would be added up in no fixed order on a GPU, on the way back.
    """
    down, right = (_moves(images.shape[axis], draw(), images) for axis in (2, 3))
    return down @ images @ right.transpose(2, 3)


def _moves(side: int, drawn: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[n, 1, side, side]: of a line of pixels the one that is moved by so many."""
    most = int(side * SHIFT + 0.5)
    by = (drawn * (2 * most + 1)).floor() - most
    place = torch.arange(side, device=like.device, dtype=torch.float32)
    return (place[:, None] - place[None, :] == by).to(like.dtype)


def _cutout(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """A square is 0, whose middle is anywhere in the image."""
    inside = [_within(images.shape[axis], draw(), images).transpose(2, axis) for axis in (2, 3)]
    return images * ~(inside[0] & inside[1])


def _within(side: int, drawn: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[n, 1, side, 1]: which pixels of a line are in the hole."""
    hole = int(side * HOLE + 0.5)
    first = (drawn * (side + 1 - hole % 2)).floor() - hole // 2
    place = torch.arange(side, device=like.device, dtype=torch.float32)[:, None]
    return (place >= first) & (place < first + hole)


_CHANGES: dict[Change, Callable[[torch.Tensor, Draw], torch.Tensor]] = {
    "color": _color, "translation": _translation, "cutout": _cutout,
}  # fmt: skip
