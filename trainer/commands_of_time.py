"""`python -m trainer COMMAND`: what foretells the time that a run will take."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.config import EXIT_DONE, GraftError


def operations(argv: list[str]) -> int:
    """Print how many operations a sample takes in each stage of a run, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m trainer operations", description="Count the operations of a sample.")
    parser.add_argument("run", type=Path, help="a run file")
    parser.add_argument("--world", type=int, default=1, help="ranks over all nodes")
    arguments = parser.parse_args(argv)

    from trainer.config import load
    from trainer.counted import count
    from trainer.forecast import NotForetoldError

    try:
        print(json.dumps({"stages": count(load(arguments.run, []), arguments.world)}))
    except NotForetoldError as problem:
        raise GraftError(f"the network cannot be followed without values ({problem})") from None
    return EXIT_DONE


COMMANDS = {"operations": operations}
