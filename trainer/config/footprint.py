"""From the bytes that a rank holds to what a card must have: the arithmetic of sharding, and what is allowed for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainer.config.errors import UserError, nearest
from trainer.config.parallel import CUTS_WEIGHTS, Parallel, kind_of

Answer = Literal["fits", "does not fit", "too close to say"]
GIB = 1 << 30

# What is not foretold, from the least that it takes to the most that is allowed for it. Bytes, and shares of the peak.
CONTEXT = (0.3 * GIB, 1.0 * GIB)  # CUDA's context and the kernels of its libraries
WORKSPACE = (0.0, 1.0 * GIB)  # of convolutions and matrix products
MEETING = (0.0, 1.0 * GIB)  # NCCL's buffers, where ranks meet
FRAGMENTS = (-0.05, 0.10)  # an error of the forecast on the one side; holes between what is allocated on the other
CUT = (-0.10, 0.20)  # the same where ranks share a network out: by arithmetic alone
_BUCKET = 2 * 10**9  # bytes: 5e8 numbers, DeepSpeed's default of reduce_bucket_size


@dataclass(frozen=True)
class Card:
    """A GPU: the GiB that a program finds on it, and what says so."""

    name: str
    gib: float
    source: str


_TORCH = "total capacity in torch's out-of-memory messages, rounded down"
_SAID = "as is commonly reported of it; no message was looked up"
_MAKER = "NVIDIA's data sheet in 10^9 bytes, less what error correction and the driver may take: a guess"
CARDS = {
    card.name: card
    for card in (
        Card("t4", 14.5, _TORCH), Card("v100-16", 15.7, _SAID), Card("v100-32", 31.7, _SAID), Card("a10", 21.9, _SAID),
        Card("l4", 22.0, _SAID), Card("rtx4090", 23.5, _TORCH), Card("a100-40", 39.3, _TORCH), Card("l40s", 44.3, _TORCH),
        Card("a100-80", 79.0, _TORCH), Card("h100", 79.0, _SAID), Card("h200", 131.0, _MAKER), Card("b200", 167.0, _MAKER),
    )
}  # fmt: skip
_ALSO = {"a100": "a100-40", "v100": "v100-16", "a10g": "a10", "4090": "rtx4090", "l40": "l40s"}  # the smaller of two


def card(name: str) -> Card:
    """The card of that name, as Slurm's Gres may call it, or one of so many GiB (`24GiB`). Raises UserError."""
    text = name.lower().replace("_", "-").removeprefix("nvidia-")
    number = text.removesuffix("gib")
    if number != text:
        try:
            gib = float(number)
        except ValueError:
            gib = 0.0
        if not 0 < gib < 1e5:
            raise UserError(f"card '{name}': write a number of GiB, such as 24GiB")
        return Card(name, gib, "as asked for")
    found = CARDS.get(_ALSO.get(text, text))
    if found is None:
        raise UserError(f"there is no card '{name}'{nearest(text, CARDS)}; there are {', '.join(CARDS)}, or write its GiB: 24GiB")
    return found


@dataclass(frozen=True)
class Footprint:
    """The bytes of one rank that has everything to itself, with micro-batches of `micro_batch`.

    `weights` to `other` are there all the time, the gradients from the first backward pass of a step to its end. `peak`: the most
    at once in a step, with `at_peak` by part, `work` being activations and what operations make; `apart`: the most of all but the
    gradients; `evaluation`: the most between steps. `block`: the weights of the largest block. `stage`: the samples
    after which this is so, where ever more learns. `lacks`: what is not in it, in words, so that nothing is sure to fit.
    """

    micro_batch: int
    weights: int
    buffers: int
    gradients: int
    optimizer: int
    average: int
    other: int
    peak: int
    at_peak: dict[str, int]
    apart: int
    evaluation: int
    block: int
    stage: int
    lacks: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def rank(self, parallel: Parallel, world: int) -> int:
        """The most bytes of tensors of each of `world` ranks.

        ddp: gradients stand in buckets that are never let go. zero1 cuts the optimizer's state and the average over the ranks,
        zero2 also the gradients, zero3 and fsdp also the weights (Rajbhandari et al. 2020, section 5), of which two blocks are
        whole at a time, or all of them where fsdp does not let go of them after its forward pass; the buckets of messages come on
        top. With `offload` the optimizer's state waits on the host, and so do the weights that are cut; the rest is counted as
        if it stayed.
        """
        kind = kind_of(parallel, world)
        if kind == "ddp" and world == 1:
            return max(self.peak, self.evaluation)
        whole = max(self.apart + self.gradients, self.evaluation + self.gradients)
        if kind == "ddp":
            return whole
        offloaded = parallel.offload != "none"
        saved = self.optimizer if offloaded else _cut(self.optimizer, world)
        saved += _cut(max(0, self.average - self.buffers), world)  # its copy of the buffers is whole
        if kind != "zero1":
            saved += _cut(self.gradients, world)
        extra = 0 if kind == "fsdp" else min(_BUCKET, self.gradients)
        if kind in CUTS_WEIGHTS:
            pieces = 0 if offloaded else self.weights - _cut(self.weights, world)
            gathered = min(self.weights, 2 * self.block) if parallel.reshard_after_forward else self.weights
            saved += self.weights
            extra += pieces + gathered
        return whole - saved + extra


def _cut(size: int, world: int) -> int:
    """What of it others hold."""
    return size * (world - 1) // world


@dataclass(frozen=True)
class Fit:
    """Whether it fits a card: the bytes that it takes at least and at most, and the answer."""

    card: str
    gib: float
    low: int
    high: int
    answer: Answer

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def allowed(peak: float, parallel: Parallel, world: int) -> tuple[int, int]:
    """What a rank takes that holds `peak` bytes of tensors: the least, and the most that is allowed for."""
    share = FRAGMENTS if kind_of(parallel, world) == "ddp" else CUT
    low, high = (
        round(peak * (1 + share[side]) + CONTEXT[side] + WORKSPACE[side] + (MEETING[side] if world > 1 else 0)) for side in (0, 1)
    )
    return low, high


def fit(found: Footprint, onto: Card, parallel: Parallel, world: int) -> Fit:
    """`fits` only with all that is allowed for, `does not fit` only without any of it."""
    low, high = allowed(found.rank(parallel, world), parallel, world)
    if parallel.offload != "none":  # the gradients may be sent on to the host as they come
        low = max(0, low - found.gradients // world)
    there = onto.gib * GIB
    answer: Answer = "fits" if high <= there and not found.lacks else "does not fit" if low > there else "too close to say"
    return Fit(onto.name, onto.gib, low, high, answer)
