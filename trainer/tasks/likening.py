"""How near pictures are to what they should be: of every sample, as they would be written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.config import UserError
from trainer.config.lpips import LEAST, Lpips, named
from trainer.pixels import coloured, pixels
from trainer.tasks.base import Batch, Evaluation, Perceives, Sheet

if TYPE_CHECKING:
    from trainer.tasks.pictures import Pictures

_EXACT = 1e-10  # the mean squared error below which PSNR is said as 100 dB
_REACH = 5  # pixels from the middle of a window to its edge
_WINDOW = 2 * _REACH + 1
_FIGURES = ("psnr", "ssim", "mae")


def l1(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean absolute difference of each, [n]."""
    return (made - target).abs().flatten(1).mean(dim=1)


def nearness(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """PSNR in dB and mean absolute error of uint8 pictures, float64 [n, 2].

    On values from 0 to 1; the square and the absolute error are means over pixels and channels.
    """
    one, other = made.double() / 255, target.double() / 255
    square = (one - other).square().flatten(1).mean(dim=1)
    return torch.stack([-10 * square.clamp(min=_EXACT).log10(), l1(one, other)], dim=1)


def figures(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """PSNR in dB, SSIM (Wang et al. 2004, 11-pixel Gaussian window) and mean absolute error of uint8 pictures, float64 [n, 3].

    All on values from 0 to 1; see `nearness`.
    """
    one, other = made.double() / 255, target.double() / 255
    psnr, mae = nearness(made, target).unbind(dim=1)
    # imported here: it brings scipy and transformers along, which every other training would wait for
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    # over whole windows alone, as in the paper; torchmetrics' own mean counts mirrored borders too
    alike = ssim(one, other, data_range=1.0, reduction="none", return_full_image=True)[1]
    whole = alike[..., _REACH:-_REACH, _REACH:-_REACH].flatten(1).mean(dim=1)
    return torch.stack([psnr, whole, mae], dim=1)


class Ruler:
    """The figures of pictures: those of `figures`, and LPIPS by its network where there is one."""

    def __init__(self, network: Lpips | None = None, lpips: Perceives | None = None) -> None:
        self.names = (*_FIGURES, *named(network))
        self._network, self._lpips = network, lpips

    def fits(self, channels: int, side: int) -> None:
        """Raises UserError for pictures that cannot be measured."""
        if side < _WINDOW:
            raise UserError(
                f"model.adapt.image_size is {side}, and SSIM is measured in windows of {_WINDOW} pixels; write {_WINDOW} or more"
            )
        if self._network is None:
            return
        if channels not in (1, 3):
            raise UserError(f"task.lpips takes grey pictures and colours, and these have {channels} channels; leave it out")
        if side < LEAST[self._network]:
            raise UserError(
                f"model.adapt.image_size is {side}, and task.lpips: {self._network} takes pictures of {LEAST[self._network]} "
                "pixels and more; leave it out, or write larger ones"
            )

    def __call__(self, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Of uint8 pictures [n, c, h, w], float64 [n, names]."""
        found = figures(made, target)
        if self._network is None:
            return found
        if self._lpips is None:
            raise RuntimeError("the network of LPIPS was not read")
        distance = self._lpips(made.float() / 127.5 - 1, target.float() / 127.5 - 1)
        return torch.cat([found, distance.double()[:, None]], dim=1)


class PictureMeasure:
    """A row for each sample, so that the figures are the same to the bit on any number of ranks; and pictures of some."""

    def __init__(self, task: Pictures, shown: int, samples: int, device: torch.device) -> None:
        self._task, self._figures = task, task.ruler.names
        self._names = [name for name in task.loss_names if name != "adversarial"]  # that of a critic is no measure
        # whether it was seen, its loss, the figures of what was made, those of the input itself, each loss, further figures
        columns = 2 + 2 * len(self._figures) + len(self._names) + len(task.more_names)
        self._rows = torch.zeros(samples, columns, dtype=torch.float64, device=device)
        count = min(shown, samples)
        self._shown = [place * samples // count for place in range(count)] if count else []
        self._made: torch.Tensor | None = None

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Add a batch."""
        output = self._task.measured(network, batch)
        made = self._task.made(output).float()
        given, target = self._task.cut(batch.images)
        losses = self._task.distances(output, target)
        seen, wanted = pixels(made), pixels(target)
        plain = self._plain(given)
        rows = batch.indices.to(made.device)
        columns = [
            torch.ones(len(made), 1, dtype=torch.float64, device=made.device),
            self._task.weighted(losses)[:, None].double(),
            self._task.ruler(seen, wanted),
            self._task.ruler(plain, wanted),
            torch.stack([value.double() for value in (*losses.values(), *self._task.more(output).values())], dim=1),
        ]
        self._rows[rows] = torch.cat(columns, dim=1)
        self._show(batch.indices.tolist(), torch.stack([plain, seen, wanted], dim=1).cpu())

    def _plain(self, given: torch.Tensor) -> torch.Tensor:
        """The input as a picture with the channels of the target, uint8."""
        spec = self._task.spec
        mean, std = (torch.tensor(values, device=given.device)[:, None, None] for values in (spec.mean, spec.std))
        image = pixels((given.float() * std + mean) * 2 - 1)
        return coloured(image, self._task.channels)

    def _show(self, indices: Sequence[int], triples: torch.Tensor) -> None:
        for row, index in enumerate(indices):
            if index in self._shown:
                if self._made is None:
                    self._made = torch.zeros(len(self._shown), *triples.shape[1:], dtype=torch.uint8)
                self._made[self._shown.index(index)] = triples[row]

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Never asked for: what a network makes of an image is not kept."""
        raise TypeError("the figures of a translation do not follow from logits")

    def wants(self) -> str | None:
        """None: it compares with the targets, which come with the inputs."""
        return None

    def refer(self, batches: Iterable[Batch], count: int) -> None:
        """Never asked for."""

    def finish(self, network: nn.Module, rank: int, world: int, at: Callable[[str], None]) -> None:
        """Have room for the pictures where this rank saw none of those that are shown."""
        if self._shown and self._made is None:
            side = self._task.spec.image_size
            self._made = torch.zeros(len(self._shown), 3, self._task.channels, side, side, dtype=torch.uint8)

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""
        return [self._rows, *([] if self._made is None else [self._made])]

    def result(self) -> Evaluation:
        """The means over the samples; of the input itself, for comparison, in the details."""
        rows = self._rows.cpu()
        seen = rows[rows[:, 0] > 0]
        means = (seen.sum(dim=0) / max(1, len(seen))).tolist()
        count = len(self._figures)
        metrics = {"loss": means[1], **dict(zip(self._figures, means[2 : 2 + count], strict=True))}
        details: dict[str, Any] = {
            "kind": self._task.kind, "samples": len(seen),
            "losses": dict(zip(self._names, means[2 + 2 * count :], strict=False)),
        }  # fmt: skip
        more = dict(zip(self._task.more_names, means[len(means) - len(self._task.more_names) :], strict=True))
        if "kl" in more:
            metrics["kl"] = more["kl"]
            spread = max(0.0, more["latent_square"] - more["latent"] ** 2) ** 0.5
            details["latents"] = {"mean": more["latent"], "std": spread}
        if self._task.pairs:
            details["input"] = dict(zip(self._figures, means[2 + count : 2 + 2 * count], strict=True))
        sheet = None
        if self._made is not None:
            words = ("input", "output", "target") if self._task.pairs else ("input", "output")
            made = self._made[:, : len(words)].flatten(0, 1)
            sheet = Sheet(made, words * len(self._made), len(words))
        return Evaluation(metrics, details, sheet)
