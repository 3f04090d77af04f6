"""A real Slurm on this host: munged, slurmctld and four slurmd in one temporary folder, started in seconds.

The nodes node1 to node4 share this machine; each has four fake GPUs (devices that no driver knows, so that Slurm counts and binds
them and CUDA finds none). Two partitions hold all of them: jobs of `urgent` preempt those of `main`, with a grace of 5 s.
Needs root, as slurmd and munged do (Debian: slurm-wlm, munge).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NODES = 4
GPUS = 4
_DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd", "slurmscriptd")
# Ends what is left when the process that started the cluster was killed itself; see `tests.cluster.keeper`.
_KEEPER = "keeper"
_ROOT = Path(__file__).resolve().parents[2]
# Character devices that every container has: a fake GPU needs a device of its own, and making one is not always allowed.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")

_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
KillWait=6
SlurmdTimeout=15
SlurmctldTimeout=10
InactiveLimit=0
MinJobAge=600
MaxArraySize=5001
MaxJobCount=20000
FirstJobId={job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=200000
GresTypes=gpu
NodeName=node[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=4000 Gres=gpu:{gpus}
PartitionName=main Nodes=node[1-{nodes}] Default=YES MaxTime=4:00:00 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=urgent Nodes=node[1-{nodes}] MaxTime=1:00:00 State=UP PriorityTier=10
"""


@dataclass
class TestCluster:
    """The daemons and their folder; `environment` makes every Slurm command talk to them."""

    __test__ = False  # not a test case, whatever its name says

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="graft-slurm-")))
    nodes: int = NODES
    kept: set[str] = field(default_factory=set)  # jobs that outlive the test which started them
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment without what an outer job set, pointing at the cluster."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self, timeout: float = 30.0) -> None:
        """Start all daemons and wait until every node is idle. AssertionError with the end of the logs when they do not."""
        self._write()
        self._spawn(_KEEPER, [sys.executable, "-m", "tests.cluster.keeper", str(self.folder)], cwd=_ROOT)
        munge = self.folder / "munge"
        self._spawn("munged", [
            _sbin("munged"), "--foreground", "--force", f"--socket={munge / 'socket'}", f"--key-file={munge / 'key'}",
            f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}",
        ])  # fmt: skip
        deadline = time.monotonic() + timeout
        while not (munge / "socket").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.start_controller(clean=True)
        for node in range(1, self.nodes + 1):
            self.start_node(f"node{node}")
        while time.monotonic() < deadline:
            idle = self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", check=False).stdout.split()
            if len(set(idle)) == self.nodes:
                return
            time.sleep(0.1)
        raise AssertionError(f"the nodes are not idle after {timeout} s\n{self.logs()}")

    def start_controller(self, *, clean: bool = False) -> None:
        self._spawn("slurmctld", [_sbin("slurmctld"), "-D", "-f", str(self.folder / "slurm.conf"), *(["-c"] if clean else [])])

    def start_node(self, name: str) -> None:
        self._spawn(name, [_sbin("slurmd"), "-D", "-N", name, "-f", str(self.folder / "slurm.conf")])

    def kill(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a daemon (`slurmctld`, `node2`) alone and wait for its end; its job steps go on."""
        process = self._daemons.pop(daemon)
        process.send_signal(number)
        process.wait(timeout=20)

    def stop(self) -> None:
        """End the daemons and everything that they started, and remove the folder."""
        keeper = self._daemons.pop(_KEEPER, None)
        doomed: list[psutil.Process] = []
        for process in self._daemons.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                doomed += [*parent.children(recursive=True), parent]
        deadline = time.monotonic() + 10
        doomed += self.strays()
        while doomed and time.monotonic() < deadline:  # again, until nothing that was just being started is left
            for one in doomed:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(doomed, timeout=5)
            doomed = self.strays()
        for process in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        self._daemons.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        if keeper is not None:
            keeper.kill()
            keeper.wait(timeout=5)

    def strays(self) -> list[psutil.Process]:
        """Daemons, steps and jobs of this cluster, whoever their parent is now.

        Jobs carry its configuration in their environment; daemons and steps have files of its folder open (a step has no command
        line that names it); what a step started is its child, whatever environment it gave itself.
        """
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and self._owns(process):
                    children = process.children(recursive=True) if process.name().startswith(_DAEMONS) else []
                    found.update({one.pid: one for one in (*children, process)})
        return list(found.values())

    def _owns(self, process: psutil.Process) -> bool:
        if process.name().startswith(_DAEMONS):
            if str(self.folder) in " ".join(process.cmdline()):
                return True
            return any(Path(file.path).is_relative_to(self.folder) for file in process.open_files())
        environment = process.environ()
        return environment.get("SLURM_CONF") == str(self.folder / "slurm.conf") and "SLURM_JOB_ID" in environment

    def run(
        self, *command: str, check: bool = True, cwd: Path | None = None, timeout: float = 60, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node."""
        own = self.environment | (env or {})
        done = subprocess.run(command, env=own, cwd=cwd, capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def state(self, job: str) -> str:
        """The state of a job or array member, such as PENDING; empty when Slurm no longer knows it."""
        said = self.run("squeue", "-h", "-j", job, "-t", "all", "-o", "%T", check=False).stdout.split()
        return said[0] if said else ""

    def wait(self, job: str, states: Sequence[str], timeout: float = 120.0) -> str:
        """Wait until a job is in one of the states; returns it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            state = self.state(job)
            if state in states:
                return state
            time.sleep(0.2)
        raise AssertionError(f"job {job} is {self.state(job)} and not {' or '.join(states)} after {timeout} s\n{self.logs()}")

    def restarts(self, job: str) -> int:
        """How often a job was requeued."""
        said = self.run("scontrol", "show", "job", job, "-o").stdout
        return int(next(word for word in said.split() if word.startswith("Restarts=")).partition("=")[2])

    def cancel_all(self) -> None:
        """End every job but the kept ones and wait until their nodes are free."""
        for name in self.daemons_missing():
            self.start_node(name) if name.startswith("node") else self.start_controller()
        deadline = time.monotonic() + 30
        kill: tuple[str, ...] = ()
        while time.monotonic() < deadline:
            found = self.run("squeue", "-h", "-o", "%A", check=False)
            left = set(found.stdout.split()) - self.kept
            if left:
                self.run("scancel", "-f", *kill, *left, check=False)
                kill = ("-s", "KILL")
            free = self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle,mix,alloc", "-o", "%N", check=False).stdout.split()
            if found.returncode == 0 and not left and len(set(free)) == self.nodes:
                return
            time.sleep(0.2)
        raise AssertionError(f"jobs do not end:\n{found.stdout}\n{self.run('sinfo', '-N').stdout}\n{self.logs()}")

    def daemons_missing(self) -> list[str]:
        """Daemons that should run and do not."""
        wanted = ["slurmctld", *(f"node{n}" for n in range(1, self.nodes + 1))]
        return [name for name in wanted if name not in self._daemons or self._daemons[name].poll() is not None]

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        files = [self.folder / "slurmctld.log", *sorted(self.folder.glob("slurmd-*.log")), self.folder / "munge" / "log"]
        return "\n".join(
            f"== {f.name}\n" + "\n".join(f.read_text(errors="replace").splitlines()[-15:]) for f in files if f.exists()
        )

    def _spawn(self, name: str, command: list[str], cwd: Path | None = None) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=None if name == _KEEPER else _die_with_parent,
            )  # fmt: skip

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        munge = self.folder / "munge"
        munge.mkdir(mode=0o755)
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        (munge / "key").chmod(0o400)
        (self.folder / "state").mkdir()
        for node in range(1, self.nodes + 1):
            (self.folder / f"spool-node{node}").mkdir()
        ctld, *ports = _ports(1 + self.nodes)
        text = _CONF.format(folder=self.folder, ctld=ctld, nodes=self.nodes, gpus=GPUS, first=ports[0], last=ports[-1],
                            job=1 + _first_job())  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        devices = ",".join(_DEVICES[:GPUS])
        lines = ["AutoDetect=off", *(f"NodeName=node[1-{self.nodes}] Name=gpu File={device}" for device in devices.split(","))]
        (self.folder / "gres.conf").write_text("\n".join(lines) + "\n")


_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec as little as possible may happen


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _first_job() -> int:
    """Clusters side by side on this host number their jobs apart: the ports of a job follow from its number, modulo 6,000."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw")
    return int(worker) % 10 * 600


def _ports(count: int) -> list[int]:
    """Free ports, the nodes' in a row."""
    for _ in range(200):
        first = 20000 + secrets.randbelow(20000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise AssertionError("no free ports")


def _sbin(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert found, f"{name} is not installed (Debian: apt-get install slurm-wlm munge)"
    return found
