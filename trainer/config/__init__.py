"""The run file and its errors. Torch-free: the launcher imports it."""

from trainer.config.errors import (
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_REFUSED,
    EXIT_REQUEUE,
    EXIT_USER,
    GraftError,
    RefusedError,
    UserError,
    nearest,
)
from trainer.config.load import changes, dump, explain, load, resolved, resumed, schema
from trainer.config.run import Run

__all__ = [
    "EXIT_DONE",
    "EXIT_FAULT",
    "EXIT_REFUSED",
    "EXIT_REQUEUE",
    "EXIT_USER",
    "GraftError",
    "RefusedError",
    "Run",
    "UserError",
    "changes",
    "dump",
    "explain",
    "load",
    "nearest",
    "resolved",
    "resumed",
    "schema",
]
