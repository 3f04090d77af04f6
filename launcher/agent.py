"""`accelerate launch` without its report of a failed rank; `python -m launcher.agent REPORT …` on this machine alone.

torchrun ends every failure with a page of its own traceback below the message that matters. Here the rank that failed first and
its exit code (-n for signal n) go to a file, and the launcher says what happened.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from trainer.rundir import exit_now, node_name, slurm_start

PORT_TAKEN = 98  # an exit code: start again with another port
_ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
mixed_precision: "no"
num_machines: {machines}
num_processes: {processes}
"""
# torchrun takes SIGTERM back from SIG_IGN unless told not to; the ranks answer it, not the agent above them
SIGNALS = {"PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"}


def words(config: Path, *, machines: int, processes: int, rank: int, address: str | None, port: int) -> list[str]:
    """The arguments of `accelerate launch` before the program; `processes` are those of all machines, `rank` this machine's."""
    # an explicit configuration: without one accelerate silently reads the user's default_config.yaml
    config.write_text(_ACCELERATE.format(machines=machines, processes=processes), encoding="utf-8")
    where = [] if address is None else ["--main_process_ip", address]
    # --multi_gpu on a CPU too: `--cpu --num_processes 2` starts one process, silently
    return [
        "--config_file", str(config), "--multi_gpu", "--num_machines", str(machines), "--num_processes", str(processes),
        "--machine_rank", str(rank), *where, "--main_process_port", str(port),
        "--mixed_precision", "no", "--dynamo_backend", "no", "--monitor_interval", "0.2",
    ]  # fmt: skip


def launch(report: Path) -> int:
    """Run `accelerate launch` with this process's arguments; returns the exit code."""
    from accelerate.commands.launch import main as accelerate
    from torch.distributed import DistNetworkError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        accelerate()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _, restart = slurm_start()
        said = {"rank": rank, "code": failure.exitcode, "node": node_name(), "restart": restart}
        report.write_text(json.dumps(said) + "\n", encoding="utf-8")
        return 1
    except (DistNetworkError, ConnectionError) as error:  # the second is accelerate's, which looks before it opens the port
        if not any(words in str(error) for words in ("EADDRINUSE", "already in use", "another process is utilizing it")):
            raise
        return PORT_TAKEN
    return 0


def main() -> int:
    """Run `accelerate launch` with the arguments after the first, which names the file for the failure."""
    return launch(Path(sys.argv.pop(1)))


if __name__ == "__main__":
    exit_now(main())
