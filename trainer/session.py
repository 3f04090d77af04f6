"""One attempt of a run: takes the folder, finds where the last attempt stopped, trains, and leaves a marker."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from trainer import build as building
from trainer import keeping, rivals
from trainer.checkpoint import Saver, Store, read
from trainer.config import EXIT_DONE, EXIT_REQUEUE, RefusedError, Run
from trainer.config.compute import fusable
from trainer.faultpoints import reached
from trainer.forgetting import at_the_end
from trainer.hang import Hang
from trainer.journal import Journal
from trainer.learning import unchanged
from trainer.loop import At, Job, train
from trainer.manifest import write_manifest
from trainer.memory import Memory
from trainer.optim import reaction
from trainer.pace import speed_of
from trainer.parts import Parts
from trainer.priors import open_prior
from trainer.progress import Clock, Progress
from trainer.rundir import Lease, LeaseLostError, RunDir, Sizes
from trainer.rundir.metric import lower_is_better
from trainer.runtime import Runtime
from trainer.signals import StopFlag
from trainer.sizes import settle, shrunk
from trainer.straggler import Stragglers
from trainer.tasks.base import Evaluation
from trainer.track.tracker import Pictures, Tracker
from trainer.watch import Heartbeat

log = logging.getLogger("graft")


def start(
    folder: RunDir,
    runtime: Runtime,
    journal: Journal,
    lease: Lease | None,
    stop: StopFlag,
    heart: Heartbeat,
    *,
    accept_changes: bool,
    give_up: Callable[[str], None],
) -> int:
    """Train the run of a folder to its end or to a wish to stop; returns the exit code.

    `give_up` ends this process with a reason: called from a thread when the training hangs.
    """
    run = folder.load()
    store = Store(folder.checkpoints, keep=run.checkpoint.keep, before_commit=lease.check if lease else lambda: None)
    loaded = keeping.find(store, runtime)
    progress = Progress.from_dict(loaded.state["progress"]) if loaded else Progress()
    if progress.samples != progress.step * run.train.global_batch:
        raise RefusedError(
            f"train.global_batch is {run.train.global_batch}, and the {progress.step:,} steps of the last checkpoint saw "
            f"{progress.samples:,} samples: {progress.step:,} x {run.train.global_batch} is "
            f"{progress.step * run.train.global_batch:,}; write "
            f"train.global_batch={progress.samples // progress.step} with --accept-changes, or give the run another name"
        )
    journal.started(progress.step)
    heart.step = progress.step
    memory = Memory(runtime.device)
    parts = building.build(run, runtime, loaded.state if loaded else None, accept_changes=accept_changes)
    if runtime.main:
        computes = {**runtime.computing.told, "fused": runtime.computing.fused and fusable(run)}
        write_manifest(
            folder, run, parts.splits, world=runtime.world, device=str(runtime.device), computes=computes,
            accept_changes=accept_changes,
        )  # fmt: skip
    if loaded:
        reached("resume-verified", loaded.step)
        keeping.restore(parts, read(loaded.path), loaded.state)
        log.info("resumed at step %d of %d from %s", progress.step, parts.steps, loaded.path.name)
    else:
        for line in parts.built.report.lines():
            log.info("%s", line)
    log.info("%s", parts.summary)
    reached("resume-loaded", progress.step)
    if not open_prior(parts, folder.prior, heart.at, lambda: bool(stop), resumed=loaded is not None):
        return leave(folder, runtime, journal, lease, progress, stop, done=False)
    if loaded and not accept_changes:
        unchanged(loaded.state.get("references", {}), parts.references)
    if not parts.open_features(heart.at, lambda: bool(stop)):
        return leave(folder, runtime, journal, lease, progress, stop, done=False)
    sizes = settle(folder, parts, progress.step)
    if sizes.refused:
        memory.restart()  # what was tried in vain is no part of it
    tracker = _tracker(folder, parts, progress, journal, memory, sizes) if runtime.main else None
    saver = keeping.saver(store, tracker, parts) if tracker or runtime.savers else None
    try:
        job = assemble(run, parts, progress, tracker, saver, stop, heart, lease)
        hang = Hang(
            folder, heart, runtime.world, run.parallel.timeout,
            saving=lambda: saver is not None and saver.busy, give_up=give_up,
        )  # fmt: skip
        watchers = [hang, Stragglers(heart, journal.straggler)] if runtime.main and runtime.world > 1 else [hang]
        with contextlib.closing(job.batches), contextlib.closing(hang), heart.watched(*watchers):
            done = train(job, progress)
    except BaseException as error:
        smaller = shrunk(parts, sizes, error, stage=heart.stage, step=progress.step) if isinstance(error, Exception) else None
        ours = not isinstance(error, LeaseLostError)
        if saver:
            saver.wait()  # what failed first is told, whatever becomes of the save under way
        if tracker:
            tracker.close(progress, complete=False, ours=ours)
            tracker.finish(complete=False)
        if smaller is not None:
            raise smaller from error
        raise
    if tracker:
        tracker.close(progress, complete=done)
    code = leave(folder, runtime, journal, lease, progress, stop, done=done)
    if tracker:
        if done and run.evaluate.source is not None:
            at_the_end(folder, run.evaluate.source, runtime.device)
        tracker.finish(complete=done)
    return code


def leave(
    folder: RunDir, runtime: Runtime, journal: Journal, lease: Lease | None, progress: Progress, stop: StopFlag, *, done: bool
) -> int:  # fmt: skip
    """Leave the marker of an attempt that ended as it should; returns the exit code."""
    runtime.barrier()
    if lease:
        lease.check()
    if runtime.main:
        if done:
            folder.mark("DONE", f"{progress.step} steps", EXIT_DONE, progress.step)
        else:
            folder.mark("REQUEUE", f"stopped by {stop.reason or 'another rank'}", EXIT_REQUEUE, progress.step)
    journal.ended("DONE" if done else "REQUEUE", progress.step, stop.reason or "")
    return EXIT_DONE if done else EXIT_REQUEUE


def _tracker(
    folder: RunDir, parts: Parts, progress: Progress, journal: Journal, memory: Memory, sizes: Sizes
) -> Tracker:  # fmt: skip
    val = parts.splits.val
    pictures = None
    if val is not None:
        dataset = parts.dataset(val, train=False)
        pictures = Pictures(fetch=lambda index: dataset.fetch([(0, index)]).images[0], keys=[item.key for item in val.items])
    return Tracker(
        folder, parts.run, progress,
        wall=journal.wall, attempt=journal.attempt, total_samples=parts.steps * parts.run.train.global_batch,
        epoch_samples=parts.epoch_samples, parameters=asdict(parts.summary), memory=memory.peak,
        pictures=pictures, sizes=sizes.told(), speed=speed_of(folder, parts),
    )  # fmt: skip


def assemble(
    run: Run,
    parts: Parts,
    progress: Progress,
    tracker: Tracker | None,
    saver: Saver | None,
    stop: StopFlag,
    heart: Heartbeat,
    lease: Lease | None,
) -> Job:
    """The job of this rank."""
    runtime, batch = parts.runtime, run.train.global_batch
    lower = lower_is_better(run.checkpoint.best)
    began_at = progress.step

    def save(state: Progress, improved: bool, wait: bool) -> None:
        began, state.saved = time.perf_counter(), state.samples
        if saver is None:
            if wait:
                heart.at("barrier")
                runtime.barrier()
            return
        if tracker is not None:
            state.points = tracker.points
        extra: dict[str, Any] = {
            "progress": state.as_dict(), "step": state.step, "samples": state.samples, "world": runtime.world,
            "parallel": runtime.kind,
            "facts": parts.splits.train.facts.as_json(),
            "outputs": [[output.name, list(output.labels)] for output in parts.task.outputs],
            **({"generator": keeping.generator_state(parts)} if parts.built.beside is not None else {}),
            **({"pair": parts.built.made_by} if parts.built.made_by else {}),
            "spec": asdict(parts.built.spec), "fresh": list(parts.built.fresh),
            "optimizer": run.optimizer_identity, "optimizer_state": parts.engine.state()[1],
            "references": parts.references,
            **({"others": rivals.states(parts.others)} if parts.others else {}),
        }  # fmt: skip
        if runtime.scaler is not None:
            extra["scaler"] = runtime.scaler.state_dict()
        saver.save(state.step, keeping.tensors(parts), extra, best=state.best if improved else None, wait=wait, since=began)
        if wait:
            heart.at("barrier")
            runtime.barrier()

    def beat(step: int) -> None:
        if saver is not None:
            saver.stepped()
            if step == began_at + 1:
                # Now the optimizer has its state: the first touch of the memory is paid here, not in the first checkpoint.
                saver.reserve(keeping.tensors(parts))
                saver.aside()
        heart.step = step
        reached("step", step)
        if tracker is not None and step < parts.steps:  # of the last step there is a point with its loss
            tracker.pulse(step, step * batch)
        if lease is not None and lease.lost:
            lease.check()  # raises: another process trains this run now

    def clock(every: Any) -> Clock:
        return Clock(every, epoch_samples=parts.epoch_samples, step_samples=batch, now=time.monotonic())

    at: At = heart.at
    if runtime.world > 1:
        pace = runtime.pace(parts.engine)
        heart.pace = pace.mean

        def at(stage: str, phase: int = 0, left: int = 0) -> None:
            pace.at(stage, phase, left)
            heart.at(stage, phase, left)

        if (stage := parts.phase.stage) is not None:

            def followed(samples: int) -> bool:
                changed = stage(samples)
                if changed:
                    pace.follow(parts.engine)
                return changed

            parts.phase.stage = followed

    evaluation = parts.evaluation(parts.splits.val, heart.at) if parts.splits.val else None

    def evaluate() -> Evaluation:
        assert evaluation is not None
        if saver is not None:
            saver.aside()
        return evaluation()

    early = run.evaluate.early_stop
    return Job(
        runtime=runtime,
        phases=parts.phases,
        average=parts.average,
        batches=parts.batches(progress.step),
        prepare=parts.prepare,
        steps=parts.steps,
        global_batch=batch,
        epoch_samples=parts.epoch_samples,
        schedule=parts.schedule(),
        momentum=parts.momentum(),
        react=reaction(run.schedule, run.checkpoint.best),
        seed=parts.seed,
        train_mode=parts.train_mode,
        evaluate=evaluate if evaluation is not None else None,
        save=save,
        wants_retry=lambda: saver is not None and saver.retry,
        stop=lambda: bool(stop),
        beat=beat,
        at=at,
        listener=tracker or Silent(),
        log_every=run.track.every,
        evaluate_every=clock(run.evaluate.every),
        checkpoint_every=clock(run.checkpoint.every),
        evaluate_at_start=run.evaluate.at_start,
        lower_is_better=lower,
        best_metric=run.checkpoint.best,
        patience=early.patience if early else None,
        min_delta=early.min_delta if early else 0.0,
        clip=run.train.clip,
        max_skipped=run.train.max_skipped,
    )


class Silent:
    """The listener of the ranks that record nothing."""

    def point(self, values: dict[str, Any], progress: Progress) -> None:
        """Nothing: rank 0 records."""

    def evaluated(self, evaluation: Any, progress: Progress, *, final: bool) -> None:
        """Nothing: rank 0 records."""
