"""One module a task, found by file name: `build(config, facts) -> Task`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from trainer.config.targets import Facts
from trainer.config.task import Task as Config
from trainer.tasks.base import Task

if TYPE_CHECKING:  # what is found by name is compared with no protocol, unless it is here
    from trainer.tasks.autoencoder import Autoencode
    from trainer.tasks.base import Generates, Likens, Translates
    from trainer.tasks.classify import Classify
    from trainer.tasks.cycle import Cycle
    from trainer.tasks.diffusion import Diffusion
    from trainer.tasks.gan import Gan
    from trainer.tasks.multi import Multi
    from trainer.tasks.multilabel import MultiLabel
    from trainer.tasks.opposing import Duels
    from trainer.tasks.regress import Regress
    from trainer.tasks.translate import Translate

    _says: tuple[type[Task], ...] = (Classify, Multi, MultiLabel, Regress)
    _translates: tuple[type[Translates], ...] = (Autoencode, Cycle, Translate)
    _likens: type[Likens] = Cycle
    _generates: type[Generates] = Diffusion
    _duels: type[Duels] = Gan


def build_task(config: Config, facts: Facts) -> Task:
    """The task of a run; `facts` is what it must know of the training samples. Raises UserError where those are of another."""
    task: Task = importlib.import_module(f"trainer.tasks.{config.kind}").build(config, facts)
    return task
