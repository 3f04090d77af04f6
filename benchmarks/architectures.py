"""Every classification architecture of timm and torchvision, without weights: is it given other classes and channels rightly?

    python -m benchmarks.architectures [--pattern 'timm:vit*'] [--limit N] [--out benchmarks/architectures.md]

Each network is built on the meta device (shapes alone, no memory), for 7 classes and for 4 channels and for 1, at the size of its
own description. It is right when
 - two images go through the adapted network in evaluation and in training, and give [2, 7],
 - every tensor of the plain network (1,000 classes, 3 channels) is taken over into it: as it is where the shape is equal, adapted
   at the input, and nothing is new but the head,
 - what was changed is what the library's own description calls classifier and first convolution (timm says both).
A refusal is a UserError; anything else that is raised, or wrong without a word, is a fault. All are listed.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import UserError
from trainer.config.adapt import Adapt
from trainer.config.run import Model
from trainer.models import build_model
from trainer.models.base import Checkpoint
from trainer.models.build import origin_of
from trainer.models.fit import fit
from trainer.models.probe import Anatomy
from trainer.spec import Output

CLASSES = tuple(f"class {index}" for index in range(7))
CHANNELS = (4, 1)
REPORT = Path(__file__).with_name("architectures.md")


@dataclass(frozen=True)
class Verdict:
    """What became of an architecture: `right`, `refused` (a UserError) or `fault`, with the reason."""

    name: str
    state: str
    reason: str = ""


def names(pattern: str) -> list[str]:
    """`timm:NAME` and `torchvision:NAME` of everything that classifies."""
    import timm
    from torchvision import models

    every = [f"timm:{name}" for name in timm.list_models()] + [f"torchvision:{n}" for n in models.list_models(module=models)]
    return [name for name in every if fnmatch.fnmatchcase(name, pattern)]


def look(name: str) -> Verdict:
    """Build, adapt and check one architecture on the meta device."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for channels in CHANNELS:
                try:
                    with torch.device("meta"), _unfilled():
                        _check(name, channels)
                except (NotImplementedError, RuntimeError) as error:  # some of torchvision compute with values: built for real
                    if "meta" not in str(error):
                        raise
                    _check(name, channels)
    except UserError as error:
        return Verdict(name, "refused", str(error).removeprefix(f"{name}: "))
    except Exception as error:  # whatever a network raises must have become a refusal: this one did not
        return Verdict(name, "fault", f"{type(error).__name__}: {error}".splitlines()[0][:300])
    return Verdict(name, "right")


def _check(name: str, channels: int) -> None:
    settings = Model(source=name, adapt=Adapt(in_channels=channels))
    source = origin_of(settings)
    size = source.image_size
    assert size is not None, "the source does not say its size"
    built = build_model(settings, "auto", (Output("", CLASSES),), 0, load_weights=False)
    built.network.eval()
    with torch.no_grad():
        output = built.network(torch.empty(2, channels, size, size, device=next(built.network.parameters()).device))
    assert tuple(output.shape) == (2, len(CLASSES)), f"gives {tuple(output.shape)} for two images"
    plain = source.make(1000, size)
    tensors = {key: value for key, value in plain.state_dict().items() if isinstance(value, torch.Tensor)}
    shape = {key: value.shape for key, value in built.network.named_parameters()}
    differing = dict.fromkeys(key.rpartition(".")[0] for key, value in plain.named_parameters() if shape[key] != value.shape)
    inputs = tuple(module for module in differing if module not in built.head)
    anatomy = Anatomy(built.head, inputs[0] if inputs else None, len(CLASSES), channels, inputs)
    adapt = Adapt(in_channels=channels)
    report = fit(built.network, Checkpoint("the plain network", tensors, official=True), anatomy, adapt, (Output("", CLASSES),))
    heads = {f"{head}.{part}" for head in anatomy.head for part in ("weight", "bias")}
    strange = [key for key in report.fresh if key not in heads]
    assert not strange, f"new beside the head: {strange[:3]}"
    assert not report.left_over, f"left over: {report.left_over[:3]}"
    entries = [entry.partition(": ")[0] for entry in report.adapted]
    assert entries, "nothing was adapted to the channels"
    said = getattr(plain, "pretrained_cfg", None)
    if said is not None:
        _agrees(said.get("classifier"), anatomy.head, "classifier")
        _agrees(said.get("first_conv"), tuple(entry.removesuffix(".weight") for entry in entries), "first_conv")


def _method(kept: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def fill(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor if tensor.is_meta else kept(tensor, *args, **kwargs)

    return fill


@contextmanager
def _unfilled() -> Iterator[None]:
    """Nothing is drawn into tensors that hold nothing: half of the time of a build on the meta device."""
    with ExitStack() as stack:
        for name in ("normal_", "uniform_", "fill_", "zero_"):
            kept = getattr(torch.Tensor, name)
            setattr(torch.Tensor, name, _method(kept))
            stack.callback(setattr, torch.Tensor, name, kept)
        yield


def _agrees(said: str | tuple[str, ...] | None, found: tuple[str, ...], what: str) -> None:
    wanted = {said} if isinstance(said, str) else set(said or ())
    assert not wanted or wanted <= set(found), f"timm's {what} is {sorted(wanted)}, found was {sorted(found)}"


def sweep(wanted: list[str], jobs: int = 1) -> Iterator[Verdict]:
    """Look at each, in `jobs` processes, with progress for a person at a terminal."""
    begun = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) if jobs > 1 else nullcontext() as pool:
        for index, verdict in enumerate(map(look, wanted) if pool is None else pool.imap(look, wanted, chunksize=4), start=1):
            if sys.stderr.isatty():
                left = (time.monotonic() - begun) / index * (len(wanted) - index)
                print(
                    f"\r{index:,} of {len(wanted):,}, {left / 60:.1f} min left  {verdict.name[:60]:<60}", end="", file=sys.stderr
                )
            yield verdict
    if sys.stderr.isatty():
        print(file=sys.stderr)


def report(verdicts: list[Verdict], seconds: float, command: str) -> str:
    """The page of the sweep: the counts and every architecture that is not right."""
    import timm
    import torchvision

    right = sum(v.state == "right" for v in verdicts)
    refused, faults = ([v for v in verdicts if v.state == state] for state in ("refused", "fault"))
    lines = [
        "# Architectures given other classes and channels", "",
        f"{right:,} of {len(verdicts):,} architectures ({right / max(len(verdicts), 1):.2%}) are right for "
        f"{len(CLASSES)} classes and for {' and '.join(map(str, CHANNELS))} channels; "
        f"{len(refused)} are refused with a reason, {len(faults)} are faults.", "",
        f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}, shapes on the meta device, "
        f"{seconds / 60:.1f} min. `{command}`", "",
    ]  # fmt: skip
    for title, some in (("Refused", refused), ("Faults", faults)):
        if some:
            lines += [f"## {title}", "", "| architecture | reason |", "|---|---|"]
            lines += [f"| {v.name} | {v.reason.replace('|', '/')} |" for v in some] + [""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__.partition("\n")[0])
    parser.add_argument("--pattern", default="*", help="only sources that match, such as 'timm:vit*'")
    parser.add_argument("--limit", type=int, help="only so many, spread evenly over all")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--out", type=Path, help=f"write the page here (default for all of them: {REPORT.name})")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = names(arguments.pattern)
    if arguments.limit and arguments.limit < len(wanted):
        wanted = [wanted[index * len(wanted) // arguments.limit] for index in range(arguments.limit)]
    begun = time.monotonic()
    verdicts = []
    for verdict in sweep(wanted, arguments.jobs):
        verdicts.append(verdict)
        if verdict.state != "right":
            print(f"{verdict.state:<8} {verdict.name}: {verdict.reason}", flush=True)
    page = report(verdicts, time.monotonic() - begun, " ".join(["python -m benchmarks.architectures", *sys.argv[1:]]))
    out = arguments.out or (REPORT if len(wanted) == len(names("*")) else None)
    if out is not None:
        out.write_text(page, encoding="utf-8")
    print(page.splitlines()[2])
    right = sum(v.state == "right" for v in verdicts)
    return 0 if right >= 0.99 * len(verdicts) and all(v.state != "fault" for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
