"""`python -m trainer COMMAND`: what foretells the time that a run will take."""

from __future__ import annotations

import argparse
import json
import resource
from contextlib import suppress
from pathlib import Path

from trainer.config import EXIT_DONE, GraftError


def operations(argv: list[str]) -> int:
    """Print how many operations a sample takes in each stage of a run, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m trainer operations", description="Count the operations of a sample.")
    parser.add_argument("run", type=Path, help="a run file")
    parser.add_argument("--world", type=int, default=1, help="ranks over all nodes")
    parser.add_argument("--memory", type=int, default=0, help="bytes that this process may take (default: any)")
    arguments = parser.parse_args(argv)

    if arguments.memory:  # what it does not get it does without; the training beside it shall not
        resource.setrlimit(resource.RLIMIT_DATA, (arguments.memory, arguments.memory))
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")

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
    from trainer.shortage import advice

    run = load(arguments.run, arguments.overrides)
    with redirect_stdout(sys.stderr):
        try:
            found = measured(run, world=arguments.world, seconds=arguments.seconds)
        except Exception as error:
            if (what := advice(error, run)) is None:
                raise
            raise GraftError(f"the probe takes one rank's share of a step, and {what}") from error
    print(json.dumps(found.as_json()))
    return EXIT_DONE


COMMANDS = {"operations": operations, "probe": probe}
