"""`train.micro_batch: auto`: the micro-batch and the batch of evaluations that fit the memory, all ranks alike.

It begins with a rank's whole share, which is what the arithmetic of the plan says, and goes down to the next size that the share
can be cut into; the global batch stays. Two things find that a size does not fit:

- A trial before the first step (`trainer.trial`), where ranks can compute alone. All try the same size and tell each other how it
  went over the hosts' own group, so that none waits in a collective for one that ran out. A size that is too large fails within a
  pass: that is sooner than a forecast is made, and is no forecast.
- The training itself, anywhere in a step or an evaluation (but for the images that a generator makes in it, whose number at a
  time is `task.samples.batch`: there the run ends, and says so). A rank that runs out may leave others waiting in the middle of a
  collective (an all-reduce of DDP, a gathering of FSDP), out of which nothing brings them back to this step. So the attempt ends:
  the rank writes the next smaller size into the run folder, leaves the marker that says so, and goes; the others end as they do
  when a rank dies, and whoever started them starts them again, from the last checkpoint. What came after that is computed again
  with the smaller size. That is the one way for every kind of sharing, every stage and every task, also those without a trial.

What was found holds for later attempts, as long as the run, the ranks' shares and the device are the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict

import torch

from trainer.config import GraftError, UserError
from trainer.config.arithmetic import rank_shares, smaller
from trainer.faultpoints import reached
from trainer.parts import Parts
from trainer.rundir import RunDir, Sizes, TooLargeError, read_sizes
from trainer.shortage import EVALUATES, short, sparing, told
from trainer.trial import hindrance, lacks, limited

COMPUTES = ("forward", "backward", "optimizer")  # stages of a step, as the heartbeat tells them
log = logging.getLogger("graft")


def settle(folder: RunDir, parts: Parts, step: int) -> Sizes:
    """Find the micro-batch of an attempt that begins at this step; the same on every rank, which all come here.

    Raises UserError where not one sample fits.
    """
    run, runtime = parts.run, parts.runtime
    if run.train.micro_batch != "auto":
        if runtime.main:
            folder.sizes.unlink(missing_ok=True)  # of an earlier attempt, which left it open
        return Sizes(parts.micro_batch)
    sizes: Sizes = runtime.from_main(_known(folder, parts) if runtime.main else None)
    before = asdict(sizes)
    # a limit (`ulimit -v`) may differ from node to node, and all ranks take the same way
    if not sizes.sure and step < parts.steps and any(runtime.everyone(limited(runtime.device))):
        why_not = hindrance(parts)
        if why_not is None:
            _try(parts, sizes, step)
        else:
            log.info("train.micro_batch: auto begins with %d, which the first step tries: %s", sizes.micro_batch, why_not)
    parts.micro_batch, parts.evaluated = sizes.micro_batch, sizes.evaluation
    if runtime.main and asdict(sizes) != before:
        sizes.write(folder)
    if sizes.refused:
        log.warning("%s", sizes.words())
    if any(one["what"] == "micro_batch" for one in sizes.refused) and normalises(parts.phase.network):
        log.warning("BatchNorm's statistics are those of a micro-batch: its size is part of what is learnt")
    return sizes


def shrunk(parts: Parts, sizes: Sizes, error: Exception, *, stage: str, step: int) -> GraftError | None:
    """What a failure in a stage of a step becomes, where memory ran out and a smaller size may do; none where not."""
    run, rank = parts.run, parts.runtime.rank
    if run.train.micro_batch != "auto" or not short(error) or stage not in (*COMPUTES, *EVALUATES):
        return None
    if stage in EVALUATES and run.evaluate.batch is not None:
        return None
    what, now = "micro_batch", sizes.micro_batch
    if stage in EVALUATES:
        what, now = "evaluation", parts.evaluation_batch(sizes.micro_batch)
    less = now // 2 if stage in EVALUATES else smaller(now, _shares(parts), alike=parts.runtime.kind != "ddp")
    if not less:
        return _nothing(parts, now, told(error))
    found = Sizes(**asdict(sizes))
    found.refuse(what, now, rank, step, told(error))
    if stage in EVALUATES:
        found.evaluation = less
    else:
        found.micro_batch, found.sure = less, False
    name = "a batch of an evaluation" if stage in EVALUATES else "a micro-batch"
    return TooLargeError(
        f"{name} of {now} does not fit the memory of rank {rank} ({told(error)}); the run goes on with {less}, from its last "
        "checkpoint, when it is started again",
        found,
    )


def normalises(network: torch.nn.Module) -> bool:
    """Whether a network learns from the statistics of its micro-batches (BatchNorm): then their size changes what it learns."""
    return any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in network.modules())


def _try(parts: Parts, sizes: Sizes, step: int) -> None:
    """Go down until a size fits every rank."""
    while True:
        reached("trial", sizes.micro_batch)
        problems = parts.runtime.everyone(lacks(parts, sizes.micro_batch))
        if not any(problems):
            sizes.sure = True
            return
        for rank, why in enumerate(problems):
            if why:
                sizes.refuse("micro_batch", sizes.micro_batch, rank, step, why)
        less = smaller(sizes.micro_batch, _shares(parts), alike=False)
        if less is None:
            raise _nothing(parts, sizes.micro_batch, next(why for why in problems if why))
        sizes.micro_batch = less


def _nothing(parts: Parts, size: int, why: str) -> UserError:
    most = "one sample does not" if size == 1 else f"{size} samples do not, and a rank has no more of a step to cut"
    made = "; images are made task.samples.batch at a time" if parts.run.task.generates else ""
    return UserError(f"train.micro_batch: auto found nothing that fits the memory: {most} ({why}); {sparing(parts.run)}{made}")


def _shares(parts: Parts) -> tuple[int, ...]:
    return rank_shares(parts.run.train.global_batch, parts.runtime.world)


def _known(folder: RunDir, parts: Parts) -> Sizes:
    """What an earlier attempt found, where it holds for this one, else the whole share."""
    whole, now = parts.micro_batch, _found_for(parts)
    held = read_sizes(folder)
    if held is None or held.found_for != now or held.micro_batch > whole:
        return Sizes(whole, found_for=now)
    return held


def _found_for(parts: Parts) -> str:
    """What decides how much memory a step takes, as one word."""
    run, device = parts.run, parts.runtime.device
    settings = run.model_dump(mode="json", include={"task", "model", "strategy", "losses", "optimizer", "train", "parallel"})
    for section, key in (("train", "steps"), ("train", "epochs"), ("train", "seed"), ("parallel", "timeout")):
        settings[section].pop(key)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    text = json.dumps([settings, _shares(parts), name, run.evaluate.batch], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
