"""How many operations a sample of a run takes, counted while a step of it runs on tensors without values."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainer import strategies
from trainer.config import Run
from trainer.forecast import Forecast, NotForetoldError, prepare
from trainer.ledger import Ledger
from trainer.operations import Stages
from trainer.parts import Parts

_COUNTED = 2  # samples


def count(run: Run, world: int) -> Stages:
    """Of each stage of the training. Blocks that are worked out again (train.checkpointing) count once: that is no work of the
    model. Raises UserError, NotForetoldError.
    """
    once = run.model_copy(update={"train": run.train.model_copy(update={"checkpointing": False})})
    return stages(prepare(once, world))


def stages(parts: Parts) -> Stages:
    """The same for a run that is put together, with whatever it works out again."""
    counted = Counted(parts, gpu=False)
    return [(start, counted.operations(start)) for start in sorted({0, *(group.start for group in parts.groups)})]


class Counted(Forecast):
    """Counts the operations of a step."""

    def operations(self, stage: int) -> float:
        """Those of the forward and backward passes of a sample, once all learns that begins before so many samples.

        Products alone are counted, as is usual (torch.utils.flop_counter), in every phase; attention as the products that it is
        made of. Raises NotForetoldError.
        """
        parts = self._parts
        if strategies.begin(parts.engine.groups, stage):
            parts.engine.regroup()
        count = min(_COUNTED, parts.run.train.global_batch)
        counter, ledger = FlopCounterMode(display=False), Ledger(self._values, gpu=False)
        try:
            with torch.random.fork_rng(devices=[]), ledger, sdpa_kernel(SDPBackend.MATH), counter:
                parts.train_mode()
                self._step([count])
        except Exception as error:  # the network is the user's, and can be trained although it is not followed
            what = str(error).strip().splitlines()[0] if str(error) else ""
            raise NotForetoldError(f"{type(error).__name__}: {what}") from error
        finally:
            for engine in self._engines():
                engine.clear()
                engine.optimizer.state.clear()
        return float(counter.get_total_flops()) / count
