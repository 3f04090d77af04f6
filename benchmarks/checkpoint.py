"""A checkpoint of 1 GB every 20 steps: `python -m benchmarks.checkpoint`.

What it holds up, and how much slower the steps are meanwhile. 83 million parameters with AdamW in fp32 on one thread. By turns
graft's saver, torch.save, torch.distributed.checkpoint (save and async_save) and Accelerate's save_state take the same state;
before each the same tensors are copied into memory that was touched before (memcpy). What each wrote is loaded and compared.
graft's files are hashed and on disk (fsync) when it says so; the others do not ask for that.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks import results
from benchmarks.paired import Spread
from trainer.checkpoint import Cost, Saver, Store, read

EVERY, BATCH = 20, 8


class Training:
    """Steps of a network of square layers, and their state."""

    def __init__(self, width: int, layers: int, device: torch.device | None = None) -> None:
        torch.manual_seed(0)
        self.device = device or torch.device("cpu")
        self.model = nn.Sequential(*(nn.Linear(width, width, bias=False, device=device) for _ in range(layers)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.images = torch.randn(BATCH, width, device=device)
        self.step()

    def step(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        self.model(self.images).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.settle()
        return time.perf_counter() - began

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and both moments by name."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self.model.named_parameters():
            held = self.optimizer.state[parameter]
            found |= {name: parameter.detach(), f"{name}.m": held["exp_avg"], f"{name}.v": held["exp_avg_sq"]}
        return found


@dataclass
class Way:
    """`save(number)` returns when the training may go on, `done` says whether all is written, `load(number)` reads it."""

    save: Callable[[int], None]
    load: Callable[[int], dict[str, torch.Tensor]]
    done: Callable[[], bool] = lambda: True
    stalls: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    shadows: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)


def graft(training: Training, folder: Path, costs: list[Cost]) -> Way:
    store = Store(folder, keep=1)
    saver = Saver(store, before_write=lambda: None, on_commit=lambda step: None, on_cost=costs.append)
    saver.reserve({"model.safetensors": training.state()})

    def load(number: int) -> dict[str, torch.Tensor]:
        saver.join()
        loaded = store.last_good()
        assert loaded is not None
        assert loaded.step == number
        return read(loaded.path)["model.safetensors"].whole()

    return Way(lambda number: saver.save(number, {"model.safetensors": training.state()}, {}), load, lambda: not saver.busy)


def torch_save(training: Training, folder: Path) -> Way:
    def load(_: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = torch.load(folder / "state.pt", weights_only=True)
        return found

    return Way(lambda _: torch.save(training.state(), folder / "state.pt"), load)


def _dcp() -> Any:
    import torch.distributed.checkpoint

    return torch.distributed.checkpoint


def _dcp_load(training: Training, folder: Path) -> dict[str, torch.Tensor]:
    dcp = _dcp()
    into = {name: torch.zeros_like(tensor) for name, tensor in training.state().items()}
    dcp.load(into, checkpoint_id=folder)
    return into


def dcp_save(training: Training, folder: Path) -> Way:
    dcp = _dcp()

    def save(_: int) -> None:
        dcp.save(training.state(), checkpoint_id=folder / "state")

    return Way(save, lambda _: _dcp_load(training, folder / "state"))


def dcp_async(training: Training, folder: Path) -> Way:
    dcp = _dcp()
    pending: list[Any] = []

    def save(_: int) -> None:
        if pending:
            pending.pop().result()
        pending.append(dcp.async_save(training.state(), checkpoint_id=folder / "state"))

    def load(_: int) -> dict[str, torch.Tensor]:
        pending[-1].result()
        return _dcp_load(training, folder / "state")

    return Way(save, load, lambda: bool(pending[-1].done()))


def save_state(training: Training, folder: Path) -> Way:
    from accelerate import Accelerator

    accelerator: Any = Accelerator(cpu=True)
    accelerator.prepare(training.model, training.optimizer)

    def load(_: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            for tensor in training.state().values():
                tensor.zero_()
        accelerator.load_state(str(folder / "state"))
        return training.state()

    return Way(lambda _: nothing(accelerator.save_state(str(folder / "state"))), load)


def nothing(_: Any) -> None:
    """Drop a value."""


def once(way: Way, training: Training, copies: dict[str, torch.Tensor], number: int, every: int) -> None:
    """The copy to compare with, one checkpoint, and the steps until the next."""
    alone = [training.step() for _ in range(every // 4)]
    state = training.state()
    began = time.perf_counter()
    for name, tensor in state.items():
        copies[name].copy_(tensor, non_blocking=True)
    training.settle()
    way.copies.append(time.perf_counter() - began)
    began = time.perf_counter()
    way.save(number)
    way.stalls.append(time.perf_counter() - began)
    during, ended = list[float](), None
    for _ in range(every):
        if way.done():
            ended = ended or time.perf_counter()
            training.step()
        else:
            during.append(training.step())
    while not way.done():
        time.sleep(0.001)
    usual = median(alone)
    way.written.append((ended or time.perf_counter()) - began)
    if len(during) > 1:
        way.shadows.append(median(during[:-1]) / usual)  # the write ended in the last
    way.lost.append(way.stalls[-1] + sum(step - usual for step in during))


def verify(name: str, way: Way, training: Training, number: int) -> None:
    """What it wrote is what there is now. Raises SystemExit."""
    held = {key: tensor.clone() for key, tensor in training.state().items()}
    way.save(number)
    loaded = way.load(number)
    if loaded.keys() != held.keys() or not all(torch.equal(held[key], loaded[key]) for key in held):
        raise SystemExit(f"{name} does not load what it saved: the comparison would mean nothing")


def row(name: str, way: Way) -> str:
    """Of the table."""
    ratio = Spread.of([stall / copy for stall, copy in zip(way.stalls, way.copies, strict=True)])
    shadow = Spread.of(way.shadows).text(".3f") if way.shadows else "none: it waits"
    cells = [name, Spread.of([1e3 * s for s in way.stalls]).text(".1f"), ratio.text(".2f"), shadow]
    return f"| {' | '.join([*cells, Spread.of(way.written).text('.2f'), Spread.of(way.lost).text('.2f')])} |"


def ms(seconds: Sequence[float]) -> str:
    """Median and quartiles."""
    return Spread.of([1e3 * value for value in seconds]).text(".1f") + " ms"


WAYS: dict[str, Callable[[Training, Path], Way]] = {
    "torch.save": torch_save, "dcp.save": dcp_save, "dcp.async_save": dcp_async, "Accelerate save_state": save_state,
}  # fmt: skip


def compare(
    training: Training, every: int, turns: int, names: Sequence[str], number: str, goal: str, command: str
) -> results.Section:  # fmt: skip
    """Each way by turns, there and back, and what each wrote loaded in the end."""
    warnings.filterwarnings("ignore", module="torch.distributed")  # it speaks of one process
    pin = training.device.type == "cuda"
    copies = {name: torch.zeros(tensor.shape, pin_memory=pin) for name, tensor in training.state().items()}
    size = sum(tensor.nbytes for tensor in copies.values())
    costs: list[Cost] = []
    home = Path(tempfile.mkdtemp(prefix="graft-benchmark-", dir=Path.cwd()))
    try:
        ways = {}
        for place, name in enumerate(names):
            folder = home / str(place)
            folder.mkdir()
            ways[name] = graft(training, folder, costs) if name == "graft" else WAYS[name](training, folder)
        saved = 0
        for _ in range(turns):
            for name in [*ways, *reversed(ways)]:
                saved += 1
                once(ways[name], training, copies, saved, every)
                print(f"{name}: held up {ways[name].stalls[-1]:.4g} s", file=sys.stderr, flush=True)
        for name, way in ways.items():
            saved += 1
            verify(name, way, training, saved)
    finally:
        shutil.rmtree(home)
    first = next(iter(ways.values()))
    lines = [
        f"{size / 1e9:.2f} GB in {len(copies)} tensors; medians with quartiles of {len(first.stalls)} checkpoints each. All load "
        "what was saved, to the bit. memcpy is the copy of the same tensors just before, into memory that was touched.",
        "",
        "| | held up, ms | over memcpy | a step meanwhile | written after, s | training lost, s |",
        "|---|---|---|---|---|---|",
        *(row(name, way) for name, way in ways.items()),
        "",
        f"memcpy: {ms([copy for way in ways.values() for copy in way.copies])}. graft's own note of it: held up "
        f"{ms([cost.stall_s for cost in costs])}. Only graft's is hashed and on disk at the end.",
    ]
    figures = {name: {key: value for key, value in vars(way).items() if isinstance(value, list)} for name, way in ways.items()}
    return results.Section(number, f"A checkpoint of {size / 1e9:.2f} GB every {every} steps", lines, goal, command, figures)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = results.options("benchmarks.checkpoint", __doc__, argv)
    torch.set_num_threads(1)
    training = Training(results.pick(chosen, 512, 2048, 2048), results.pick(chosen, 8, 20, 20))
    goal = "held up at most 1.2 memcpy, steps at most 5% slower"
    turns, names = results.pick(chosen, 1, 2, 10), ("graft", *WAYS)
    section = compare(training, EVERY, turns, names, "4", goal, results.command("benchmarks.checkpoint", chosen))
    return results.finish([section], chosen)


if __name__ == "__main__":
    sys.exit(main())
