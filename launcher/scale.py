"""What failures cost a run on many GPUs, and how often it should save: formulas of the literature, no measurement."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trainer.config import UserError

HOUR = 3600.0
# Failures of a node of eight GPUs that ended jobs, in a thousand days of it.
RATES = {
    "Meta RSC-2 (Kokolis et al. 2024)": 2.34,
    "Llama 3, 419 interruptions in 54 days on 16,384 GPUs (Grattafiori et al. 2024)": 419 / (54 * 2048) * 1000,
    "Meta RSC-1 (Kokolis et al. 2024)": 6.50,
}
_EIGHT = 8
FORMULAS = (
    "time between failures of the job M = that of a node / nodes (independent failures)",
    "best interval (Daly 2006, eq. 37) t = sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + (d / 2M) / 9) - d, for d < 2M, else M; "
    "first order (Young 1974) sqrt(2 d M)",
    "effective training time ratio (from Daly 2006, eq. 20) = t exp(-R / M) / (M (exp((t + d) / M) - 1))",
)


@dataclass(frozen=True)
class Outlook:
    """What comes of a rate of failures. Seconds; `ratio` is the share of the time that trains, with saving as often as is best
    (`interval`; `young`: by the first order) and, where the run says it in time, as often as the run does (`own`, else none).
    """

    rate: str
    node_hours: float
    job_hours: float
    interval: float
    young: float
    ratio: float
    own: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def young(save: float, between: float) -> float:
    """The best time of work between two saves, to the first order (Young 1974, CACM 17(9), 530-531): sqrt(2 d M).

    `save`: seconds that a save holds the training up, `between`: mean seconds between two failures.
    """
    return math.sqrt(2 * save * between)


def daly(save: float, between: float) -> float:
    """The same to a higher order (Daly 2006, Future Generation Computer Systems 22(3), 303-312, eq. 37)."""
    if save >= 2 * between:
        return between
    part = save / (2 * between)
    return math.sqrt(2 * save * between) * (1 + math.sqrt(part) / 3 + part / 9) - save


def ratio(interval: float, save: float, restart: float, between: float) -> float:
    """The share of the time that trains, expected (Daly 2006, eq. 20, whose total time is M e^(R/M) (e^((t+d)/M) - 1) T / t).

    Failures come independently, also while saving and restarting; `restart`: seconds from a failure to the next step.
    """
    exponent = (interval + save) / between
    if exponent > 700:  # e^700 is the end of what a number holds, and nothing is left long before
        return 0.0
    return interval * math.exp(-restart / between) / (between * math.expm1(exponent))


def outlooks(
    nodes: int, each: int, *, mtbf: float | None, save: float, restart: float, every: float | None
) -> list[Outlook]:  # fmt: skip
    """For the rate that is given (`mtbf`: hours between failures of a node), else for published ones.

    Those are of nodes of eight GPUs, and a node with `each` of them is taken to fail as much less (or more) often.
    `every`: seconds between two saves, as the run has it. Raises UserError for times that are none.
    """
    for name, value in (("--mtbf", mtbf), ("--save", save), ("--restart", restart)):
        if value is not None and not (0 < value < math.inf or (name == "--restart" and value == 0)):
            raise UserError(f"{name} is {value:g}; write a number above 0")
    given = {name: 24_000 / (rate * each / _EIGHT) for name, rate in RATES.items()} if mtbf is None else {"as given": mtbf}
    found = []
    for name, hours in given.items():
        between = hours * HOUR / nodes
        best = daly(save, between)
        own = None if every is None else ratio(every, save, restart, between)
        found.append(
            Outlook(
                name, hours, between / HOUR, best, young(save, between), ratio(best, save, restart, between), own
            )
        )  # fmt: skip
    return found


def nodes_of(gpus: int, each: int) -> tuple[int, int]:
    """How many nodes hold so many GPUs, where each has `each` or more, and how many of them each holds. Raises UserError where
    they do not fill whole ones."""
    each = min(gpus, each)
    if gpus % each:
        raise UserError(
            f"--gpus is {gpus}, and nodes have {each}: {gpus} / {each} is no whole number; write --gpus {gpus // each * each}, "
            f"or resources.gpus_per_node=N"
        )
    return gpus // each, each
