"""`graft sync`: which runs are meant; the sending is the trainer's, in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.python import environment, trainer_command
from launcher.runs import find, folders
from trainer.config import EXIT_DONE


def sync(names: list[str], runs: Path, *, follow: bool, as_json: bool) -> int:
    """Become `python -m trainer sync` for the named runs, else for all below `runs` that W&B has an id for. Raises UserError."""
    asked = [find(name, runs) for name in names]
    tracked = [] if asked else [folder for folder in folders(runs) if (folder.path / "wandb" / "id").is_file()]
    found = sorted(str(folder.path.resolve()) for folder in asked or tracked)
    if not found:
        if as_json:
            print('{"runs": []}')
        else:
            print(f"no W&B runs in {runs}: nothing to send")
        return EXIT_DONE
    options = ["--follow"] * follow + ["--json"] * as_json
    words = trainer_command("sync", *options, "--", *dict.fromkeys(found))
    os.execve(words[0], words, environment())
