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


def probe(argv: list[str]) -> int:
    """Print how fast the loader and the steps of a run are on this machine, as JSON."""
    parser = argparse.ArgumentParser(prog="graft plan --probe", description="Measure how fast a run is on this machine.")
    parser.add_argument("run", type=Path, help="a run file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--world", type=int, default=1, help="ranks that the run is planned for; one is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of three measurements (default: 5)")
    arguments = parser.parse_intermixed_args(argv)

    import sys
    from contextlib import redirect_stdout

    from trainer.config import load
    from trainer.probe import probe as measured

    with redirect_stdout(sys.stderr):
        found = measured(load(arguments.run, arguments.overrides), world=arguments.world, seconds=arguments.seconds)
    print(json.dumps(found.as_json()))
    return EXIT_DONE


COMMANDS = {"operations": operations, "probe": probe}
