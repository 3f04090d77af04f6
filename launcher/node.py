"""`python -m launcher.node FOLDER …`: what every node of a Slurm job runs. Checks the node, meets the others, starts the ranks.

A small process stays above all others of the node: what is left of them when the ranks have ended (a tool that the training
started and that ignores signals) it kills, since Slurm would wait for that until the time limit. Its child checks, meets, and
becomes `accelerate launch`: torch is imported once for all.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import signal
import sys
from pathlib import Path

from launcher.agent import PORT_TAKEN, SIGNALS, launch, words
from launcher.nodecheck import PortTakenError, check_node, meet
from launcher.python import trainer_command
from launcher.tree import ProcessTree
from trainer.rundir import RunDir, exit_now, node_name, slurm_start

_PR_SET_PDEATHSIG = 1
BAD_NODE = 76  # an exit code: what is wrong stands in log/bad-nodes.jsonl
GRACE = 2.0  # seconds for what the ranks left behind to end by itself
MEET_WITHIN = 120.0  # seconds: nodes of a job start within some seconds of each other, torch on a cold file system takes a minute


def main() -> int:
    """Start the node's work in a child and leave nothing of it; returns the exit code of this node."""
    given = _arguments()
    tree, parent = ProcessTree(), os.getpid()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # kill -9 of the process above ends all
        if os.getppid() == parent:
            exit_now(work(given))
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    tree.end(grace=GRACE)
    return code if code >= 0 else 128 - code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.node")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True, help="ranks on this node")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs that must be here")
    parser.add_argument("--threads", type=int, required=True, help="CPU threads a rank")
    parser.add_argument("--address", required=True, help="of the first node")
    parser.add_argument("--port", type=int, required=True, help="for the ranks; the next one is for the nodes themselves")
    parser.add_argument("--accept-changes", action="store_true")
    parser.add_argument("--retry", action="store_true")
    return parser.parse_args()


def work(given: argparse.Namespace) -> int:
    """Check, meet, launch; returns the exit code."""
    folder, index = RunDir(given.folder), int(os.environ.get("SLURM_NODEID", "0"))
    name = node_name()
    problems = [(name, problem) for problem in check_node(folder.path, gpus=given.gpus)]
    if not problems and given.nodes > 1:
        names = os.environ.get("GRAFT_NODES", "").split(",")
        within = float(os.environ.get("GRAFT_MEET_WITHIN") or MEET_WITHIN)
        try:
            absent = meet(
                start_name(folder), nodes=names, index=index, address=given.address, port=given.port + 1, timeout=within
            )
        except PortTakenError:
            return _port_taken(folder)
        problems = [(node, "did not meet the other nodes") for node in absent]
    for node, problem in problems:
        print(f"graft: node {node}: {problem}", file=sys.stderr, flush=True)
        folder.report_bad(node, problem)
    if problems:
        return BAD_NODE
    world = given.nodes * given.processes
    os.environ.update(
        SIGNALS, GRAFT_LAUNCHED="1", GRAFT_WORLD=str(world), OMP_NUM_THREADS=str(given.threads), GRAFT_TERMINAL="",
        PYTHONUNBUFFERED="1", PET_RDZV_ID=start_name(folder),
    )  # fmt: skip
    flags = ["--accept-changes"] * given.accept_changes + ["--retry"] * given.retry
    trainer = trainer_command("train", str(folder.path), *flags)
    if world == 1:
        os.execv(trainer[0], trainer)
    machine = words(
        folder.logs / f"accelerate-{index}.yaml", machines=given.nodes, processes=world, rank=index, address=given.address,
        port=given.port,
    )  # fmt: skip
    sys.argv = [sys.argv[0], *machine, *trainer[1:]]
    code = launch(folder.logs / f"failure-{index}.json")
    return _port_taken(folder) if code == PORT_TAKEN else code


def start_name(folder: RunDir) -> str:
    """One name for this start on all its nodes, and no other's.

    Jobs that share a node may come upon one port. Whoever then joins the other's store finds nothing under this name, instead of
    counting among its ranks.
    """
    job, restart = slurm_start()
    return f"{hashlib.sha256(os.fsencode(folder.path.resolve())).hexdigest()[:16]}-{job}-{restart}"


def _port_taken(folder: RunDir) -> int:
    """Tell the job script, which does not get this node's exit code where there are several."""
    (folder.logs / "port-taken").touch()
    return PORT_TAKEN


if __name__ == "__main__":
    exit_now(main())
