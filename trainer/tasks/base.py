"""What the loop knows of a task: phases to step, and a measure to evaluate with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from trainer.spec import Beside, Critic, Cyclic, Generator, InputSpec, Judge, Output, Reconstructor, Translator, Wanted


class Batch(Protocol):
    """A micro-batch on the device: normalised images [n, c, h, w], classes [n], which samples of the listing they are, and what
    else is known of them [n, v] (NaN where it is not), which is none where a class is all.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor | None


class Keyed(Batch, Protocol):
    """A micro-batch that also says in which epochs its samples come, [n] on the CPU: with the indices those are their keys."""

    epochs: torch.Tensor


class WithPrior(Keyed, Protocol):
    """One with as many samples of what a generator knew before, where there are such."""

    @property
    def prior(self) -> Keyed | None: ...


LossFunction = Callable[[nn.Module, Any], torch.Tensor]


class Settle(Protocol):
    """What comes between the gradients of a step and the step."""

    def __call__(self, samples: int, *, good: bool) -> None:
        """`good`: the gradients are finite, and the step will be taken."""


class Engine(Protocol):
    """A network on its ranks with its optimizer, as `runtime` puts it together."""

    module: nn.Module  # what is called
    optimizer: torch.optim.Optimizer
    rates: list[tuple[dict[str, Any], float]]  # the optimizer's groups, with the learning rates that the schedule multiplies

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch; `last`: the gradients of the step are complete with it."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss."""

    def norm(self) -> torch.Tensor:
        """The norm of the gradients over all ranks, the same on each."""

    def step(self, norm: torch.Tensor, clip: float | None) -> None:
        """Take the step, its gradients cut to a norm of `clip`; `norm` is finite."""

    def clear(self) -> None:
        """Forget the gradients, whether the step was taken or not."""


@dataclass
class Phase:
    """A network, its loss and its engine; a classifier has one, a GAN two.

    `network` is the bare one that is saved. `loss(module, batch)` gives one value a sample, [n]; or [n, 1 + columns], where
    further columns are for the record alone, each the mean over the samples. `stage(samples)`, where what learns changes on the
    way, makes the engine ready for it; true when it did. `settle(samples after the step, good=…)` comes when a step's gradients
    are there, and before it is taken.
    """

    name: str
    network: nn.Module
    engine: Engine
    loss: LossFunction
    stage: Callable[[int], bool] | None = None
    columns: tuple[str, ...] = ()
    settle: Settle | None = None


class Measure(Protocol):
    """Accumulates an evaluation over batches, and over ranks by summing its tensors."""

    def update(self, network: nn.Module, batch: Batch) -> None:
        """Send a batch through the network and add it."""

    def add(self, logits: torch.Tensor, batch: Batch) -> None:
        """Add a batch that has these logits [n, labels]."""

    def tensors(self) -> Sequence[torch.Tensor]:
        """What is to be summed over the ranks, in place."""

    def result(self) -> Evaluation:
        """The figures, once the tensors hold the sums."""


@runtime_checkable
class Finishing(Measure, Protocol):
    """A measure that also needs the network when all batches are through."""

    def wants(self) -> str | None:
        """Which images of the data (`train`, `val`) it has to see before that; none where it saw them already, or wants none."""

    def refer(self, batches: Iterable[Batch], count: int) -> None:
        """Take in this rank's share of those, of `count` in all."""

    def finish(self, network: nn.Module, rank: int, world: int, at: Callable[[str], None]) -> None:
        """Do this rank's share of it; `at` hears that it goes on."""


@dataclass(frozen=True)
class Sheet:
    """Images that an evaluation made, uint8 [n, c, h, w], to be laid out in so many columns; a word for each."""

    images: torch.Tensor
    captions: tuple[str, ...]
    columns: int


@dataclass
class Evaluation:
    """The figures of an evaluation: `metrics` for the curves (named without a prefix), `details` for the report (JSON), whose
    `answers` are `Answers`.
    """

    metrics: dict[str, float]
    details: dict[str, Any]
    sheet: Sheet | None = None


class Task(Protocol):
    """A task: how a batch becomes a loss, how a network is measured and what its answers look like."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the network has to give."""

    def run(self, module: nn.Module, batch: Any) -> Any:
        """Send a batch through the network: its output as it is."""

    def logits(self, output: Any) -> torch.Tensor:
        """What the main heads give, side by side: [n, all labels of `outputs`]."""

    def losses(self, output: Any, batch: Any) -> dict[str, torch.Tensor]:
        """The task's losses by name, each with one value a sample, [n], so that any split over ranks and micro-batches gives the
        same mean; a sample that says nothing of a loss has 0 there. A task with one loss calls it `task`."""

    def measure(self, samples: int, device: torch.device) -> Measure:
        """A fresh measure for an evaluation of so many samples."""

    def predictions(self, logits: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """What the logits [n, all labels] of some images say, as JSON; of classes the `top` most probable."""

    @property
    def scale(self) -> torch.Tensor | None:
        """[2, all labels] in double precision, where the network's numbers are not those that are told: these are
        `scale[0] * logits + scale[1]`.
        """


@runtime_checkable
class Makes(Task, Protocol):
    """A task whose network makes images; its `outputs` are none."""

    @property
    def generator(self) -> Generator:
        """What the network has to be."""

    def image(self) -> tuple[int, int]:
        """Channels and side of an image, once there is a network."""

    def compare(self, judge: Judge) -> None:
        """Measure how like the data its images are, by the features of a judge."""

    def number(self, word: str) -> int:
        """The number of what its network is told, by name. Raises UserError for a name that means nothing to it."""

    def shown(self) -> list[int]:
        """What images are shown of, in turn, by number."""

    def word(self, number: int) -> str:
        """The name of a number, or its text; empty where the network is told of none."""

    def plan(self) -> Any:
        """How images are made, where nobody says otherwise."""

    def sample(
        self, network: nn.Module, seeds: Sequence[int], classes: Sequence[int], plan: Any, step: Callable[[], None]
    ) -> torch.Tensor:
        """Images, uint8 [n, c, h, w] on the CPU, of seeds and of classes by number; `step` hears that it goes on."""


@runtime_checkable
class Generates(Makes, Protocol):
    """One whose network makes them by taking noise out, step by step."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Those of `losses`."""

    def bind(self, beside: Beside, seed: int) -> None:
        """Take what stands beside the network that was built, before anything is run. Raises UserError where it does not fit."""

    def ready(self, device: torch.device) -> None:
        """Work out what can be worked out once, before a training. Raises UserError."""

    def unread(self) -> None:
        """Do without the weights of text encoders: what is told has its shapes alone."""

    def schedule(self) -> Mapping[str, Any]:
        """The settings of the scheduler that goes with the weights, for whoever goes on with them."""

    def caption(self, text: str) -> int:
        """The number of a caption, as the data has it."""


class Perceives(Protocol):
    """The distance of two pictures, both [n, c, h, w] in [-1, 1], by the features of `network`: [n]."""

    @property
    def network(self) -> nn.Module: ...
    def __call__(self, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class Translates(Task, Protocol):
    """A task whose network makes pictures of pictures, other ones or the same; its `outputs` are none."""

    @property
    def wanted(self) -> Translator | Reconstructor | Cyclic:
        """What the network has to be."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Those of `losses`."""

    def fit(self, spec: InputSpec, network: nn.Module, seed: int) -> None:
        """Take the network that was built and what it takes, before anything is run. Raises UserError where it does not fit."""

    def perceive(self, distances: Mapping[str, Perceives], weights: Mapping[str, float]) -> None:
        """Take the distances of features, those that there are of `perceptual` and `lpips`, and the losses' weights."""

    def measured(self, network: nn.Module, batch: Batch) -> Any:
        """What a network gives in an evaluation."""

    def critic(self) -> Critic | tuple[Critic, ...] | None:
        """A second network, which its pictures have to deceive, or one of several critics that is called with pictures for each
        of them; none without an adversarial loss. Comes after `fit`."""

    def oppose(self, network: nn.Module) -> LossFunction:
        """Learn against this network; returns that one's own loss."""

    @property
    def perceives(self) -> Mapping[str, nn.Module]:
        """The networks whose features are compared, which never learn."""


@runtime_checkable
class Likens(Protocol):
    """A task that can measure how like those of a kind its pictures are, by features."""

    def liken(self, judge: Judge) -> None:
        """Take the features."""


def wanted(task: Task) -> Wanted:
    """What a task asks of a network."""
    if isinstance(task, Makes):
        return task.generator
    return task.wanted if isinstance(task, Translates) else task.outputs


def loss_names(task: Task) -> tuple[str, ...]:
    """The names of a task's own losses: `task` for the only one."""
    if isinstance(task, Translates | Generates):
        return task.loss_names if len(task.loss_names) > 1 else ("task",)
    return ("task",) if len(task.outputs) <= 1 else tuple(output.name for output in task.outputs)
