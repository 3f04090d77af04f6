"""How a library makes its plain architecture: for exports whose heads it has no words for, so that it cannot load them by itself.

Each function returns imports, definitions, and the lines that make `network` with random weights.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.config import Run
from trainer.models.transformers import _Logits, logits_only
from trainer.spec import InputSpec

Lines = tuple[list[str], list[str], list[str]]
ARCHITECTURE = "architecture.json"


def _timm(run: Run, spec: InputSpec, classes: int, folder: Path) -> Lines:
    from trainer.models.timm import Source

    source = Source(run.model.source.partition(":")[2], run.model.model_copy(update={"weights": "none"}))
    given = {**source.args(spec.image_size), "in_chans": spec.in_channels}
    args = "".join(f", {key}={value!r}" for key, value in given.items())
    line = f"network = timm.create_model({source.facts['architecture']!r}, num_classes={classes}{args})"
    return ["import timm"], [], [line]


def _transformers(run: Run, spec: InputSpec, classes: int, folder: Path) -> Lines:
    from trainer.models.transformers import Source

    source = Source(run.model.source.partition(":")[2], run.model.model_copy(update={"weights": "none"}))
    made: Any = source.make(classes, spec.image_size, spec.in_channels)
    settings = copy.deepcopy(made.config)
    (folder / ARCHITECTURE).write_text(json.dumps(settings.to_dict(), indent=1) + "\n", encoding="utf-8")
    imports = [
        "import json",
        "from typing import cast",
        "from transformers import CONFIG_MAPPING, AutoModelForImageClassification",
    ]
    parts = [re.sub(r"\n    # .*", "", inspect.getsource(part)) for part in (_Logits, logits_only)]
    return imports, parts, [
        f'settings = json.loads((FOLDER / "{ARCHITECTURE}").read_text(encoding="utf-8"))',
        'settings = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)',
        f"network = logits_only(AutoModelForImageClassification.from_config(settings), flip={made.flip})",
    ]  # fmt: skip


PLAIN: dict[str, Callable[[Run, InputSpec, int, Path], Lines]] = {"timm": _timm, "transformers": _transformers}
