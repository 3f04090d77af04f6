"""Started as a process of its own: `accelerate launch` without its report of a failed rank.

torchrun ends every failure with a page of its own traceback below the message that matters. Here the rank that failed first and
its exit code (-n for signal n) go to a file, and the launcher says what happened.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> int:
    """Run `accelerate launch` with the arguments after the first, which names the file for the failure."""
    report = Path(sys.argv.pop(1))
    from accelerate.commands.launch import main as launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        launch()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        report.write_text(json.dumps({"rank": rank, "code": failure.exitcode}) + "\n", encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
