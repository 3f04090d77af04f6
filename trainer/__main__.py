"""`python -m trainer COMMAND …`: train a run folder or run file, or use what was trained.

Several ranks are started by `accelerate launch -m trainer train RUN`; what they need comes in the environment.
"""

from __future__ import annotations

import sys

from trainer.rundir import exit_now
from trainer.signals import StopFlag, die_with_parent


def main() -> int:
    """Dispatch; signals are handled from the first moment on, before torch is imported."""
    die_with_parent()
    argv = sys.argv[1:]
    known = (
        "evaluate", "predict", "sample", "translate", "export", "report", "fetch", "forgetting", "sync", "describe", "find-lr",
        "models", "operations", "probe",
    )  # fmt: skip
    if argv and argv[0] in known:
        from trainer.commands import main as use

        return use(argv)
    stop = StopFlag()
    from trainer.attempt import main as train

    return train(argv[1:] if argv[:1] == ["train"] else argv, stop)


if __name__ == "__main__":
    exit_now(main())
