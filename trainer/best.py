"""Which evaluation is the best so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainer.config import GraftError
from trainer.progress import Progress
from trainer.tasks.base import Evaluation

if TYPE_CHECKING:
    from trainer.loop import Job


def judge(job: Job, progress: Progress, evaluation: Evaluation) -> bool:
    """Note an evaluation in the progress; true when it is the best yet."""
    progress.evaluated = progress.samples
    progress.metrics = {f"val/{name}": value for name, value in evaluation.metrics.items()}
    if job.best_metric not in progress.metrics:
        raise GraftError(f"checkpoint.best is '{job.best_metric}'; the evaluation gives {', '.join(progress.metrics)}")
    value = progress.metrics[job.best_metric]
    gain = math.inf if progress.best is None else (progress.best - value if job.lower_is_better else value - progress.best)
    if math.isfinite(value) and gain > 0:
        progress.waited = 0 if gain > job.min_delta else progress.waited + 1
        progress.best, progress.best_step, progress.best_metrics = value, progress.step, dict(progress.metrics)
        return True
    progress.waited += 1
    return False
