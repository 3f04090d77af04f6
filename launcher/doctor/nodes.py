"""From what two nodes found to checks: pure, apart from reading this host's own versions and clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from launcher.cluster import Cluster
from launcher.doctor import folder
from launcher.doctor.check import Check, failed, ok, size, unchecked, warning
from launcher.doctor.job import NO_FOLDER, NO_MODULE, NO_PYTHON, NO_SITE, NOT_THERE, Outcome
from launcher.doctor.login import judge_versions
from launcher.probe import network

Fact = dict[str, Any]
_SHARED = "Choose a folder that login and all compute nodes share with --runs FOLDER."
_LATE = 10.0  # seconds until one node sees what the other wrote
_FEW_FILES = 4096  # open files
_SLOW_NET = 300.0  # MB/s between nodes

_WRONG = {
    NO_FOLDER: ("the run folder is not seen, or not writable, on {where}",
                "Choose a folder that login and compute nodes share with --runs FOLDER."),
    NO_SITE: ("the site file fails on {where}: {errors}", "Correct the file that `site` names; nodes must see it."),
    NO_MODULE: ("a module is not loaded on {where}: {errors}", "Correct `modules` in the cluster file: `module avail`."),
    NO_PYTHON: ("the interpreter is not there: {errors}", "Correct `python` or `container` in the cluster file."),
}  # fmt: skip
_STATES = {
    "TIMEOUT": "Try again; if it ends so again, look at the nodes' network and file system: something there hangs.",
    "HUNG": "See where it hung above; often it is the network between nodes: name it as `interface` in the cluster file.",
    "NODE_FAIL": "Try again; if it ends so again, tell the administrators which node it was.",
    "OUT_OF_MEMORY": "Set `memory` in the cluster file, such as memory: 32G: the partition's default is too little for torch.",
    "PREEMPTED": "Try again: another job took the nodes.",
    "CANCELLED": "Try again: somebody cancelled the job.",
}


def judge(outcome: Outcome, cluster: Cluster, ahead: float) -> Iterator[Check]:
    """The checks of the compute nodes. `ahead` is by how much the file server's clock is ahead of the login node's."""
    if outcome.waits:
        yield unchecked(
            "compute nodes", f"the job waits for {outcome.waits}",
            "Try again when the partition is less busy, or wait longer with --wait SECONDS; see `sinfo -R` and `squeue`.",
        )  # fmt: skip
        return
    if len(outcome.facts.get("end", {})) + _blind(outcome) < outcome.nodes:
        found, advice = _WRONG.get(outcome.code, (
            "the job ended {state} (exit code {code}) on {where}: {errors}",
            _STATES.get(outcome.state, "Mend what it says: see `python`, `container`, `modules` and `site` in the cluster file."),
        ))  # fmt: skip
        errors = outcome.errors.replace("\n", "; ") or "it said nothing"
        yield failed(
            "compute nodes",
            found.format(where=outcome.where or "the node", errors=errors, state=outcome.state, code=outcome.code),
            advice,
        )
        if not outcome.facts:
            return
    yield from _Judge(outcome, cluster, ahead).checks()


def _blind(outcome: Outcome) -> int:
    """Nodes that did not find the folder, and so had nothing to run."""
    return sum(fact.get("error") == NOT_THERE for fact in outcome.facts.get("folder", {}).values())


class _Judge:
    def __init__(self, outcome: Outcome, cluster: Cluster, ahead: float) -> None:
        self.outcome, self.cluster, self.ahead = outcome, cluster, ahead

    def checks(self) -> Iterator[Check]:
        names = [self.outcome.names[rank] for rank in sorted(self.outcome.names)]
        yield ok("compute nodes", f"the job ran on {' and '.join(names)}")
        yield from self.each("python", "python", self._python)
        yield from self.each("gpus", "GPUs", self._gpus)
        yield from self._folder()
        yield from self._between()
        yield from self._writing()
        yield from self.each("clock", "clock", self._clock)
        if self.cluster.interface:
            yield from self.each("interface", "interface", self._interface)
        if self.cluster.scratch:
            yield from self.each("scratch", "scratch", self._scratch)
        yield from self.each("limits", "limits", self._limits)
        yield self._slurm()
        yield from self._network()

    def each(self, fact: str, name: str, judge: Callable[[Fact], Check], advice: str = "") -> Iterator[Check]:
        """Judge a fact on each node; nodes that agree share a line. `advice` is for a node where it could not be found out."""
        said: dict[Check, list[str]] = {}
        for rank in range(self.outcome.nodes):
            found = self.outcome.facts.get(fact, {}).get(rank)
            node = self.outcome.names.get(rank, f"node {rank + 1} of the job")
            if found is None:
                check = unchecked(name, "the node did not come so far")
            elif "error" in found and fact not in ("scratch",):
                own = f"Look at {node} with `srun -w {node} --pty bash`, or leave it out: --exclude={node} in `options`."
                check = failed(name, found["error"], advice or own)
            else:
                check = judge(found)
            said.setdefault(check, []).append(node)
        for check, nodes in said.items():
            both = len(nodes) == self.outcome.nodes
            shown = check.found if both else f"{', '.join(nodes)}: {check.found}"
            yield Check(check.name, check.state, shown, check.advice)

    def _python(self, fact: Fact) -> Check:
        return judge_versions("python", fact["executable"], fact["versions"])

    def _gpus(self, fact: Fact) -> Check:
        asked, seen = self.cluster.gpus_per_node or 0, int(fact["cuda"])
        text = f"torch {fact['torch']} sees {seen}, asked for {asked}"
        if seen:
            text += f": {', '.join(fact['names'])}, {size(fact['free'])} of {size(fact['total'])} free"
        text += f", driver {fact['driver']}" if fact.get("driver") else ""
        if not asked:
            return ok("GPUs", "none asked for (gpus_per_node is not set)")
        if seen < asked:
            return failed(
                "GPUs", text,
                "See `nvidia-smi` on the node: its driver must know the CUDA that torch is built for.",
            )  # fmt: skip
        if fact["free"] < 0.9 * fact["total"]:
            return warning(
                "GPUs", text, "Another process holds memory of a GPU: look for it with `nvidia-smi`, or exclude the node."
            )
        return ok("GPUs", text)

    def _folder(self) -> Iterator[Check]:
        def seen(fact: Fact) -> Check:
            return ok("run folder", f"seen and writable ({fact['kind']})")

        yield from self.each("folder", "run folder", seen, _SHARED)
        there = sum("error" not in fact for fact in self.outcome.facts.get("folder", {}).values())
        if self.outcome.answered < there:
            yield failed(
                "run folder", "what the nodes write there is not seen on the login node", _SHARED,
            )  # fmt: skip
        elif there:
            yield self._locks_alone()

    def _locks_alone(self) -> Check:
        if all(fact.get("locks") for fact in self.outcome.facts["folder"].values() if "error" not in fact):
            return ok("locks", "flock excludes a second holder on the node")
        return failed("locks", "flock lets two holders in", "Ask for working locks there (Lustre: mount with -o flock).")

    def _between(self) -> Iterator[Check]:
        facts = self.outcome.facts
        if self.outcome.nodes < 2:
            yield unchecked("between two nodes", "the partition has one such node", "Runs on one node do not need it.")
            return
        met = [fact.get("seconds") for fact in facts.get("meet", {}).values()]
        if len(met) < 2 or None in met:
            yield failed(
                "between two nodes", "one node does not see what the other writes into the run folder",
                _SHARED,
            )  # fmt: skip
            return
        yield self._visible(max(float(seconds) for seconds in met if seconds is not None))
        yield self._locks()
        yield self._collective("gloo")
        if "nccl" in facts:
            yield self._collective("nccl")

    def _visible(self, met: float) -> Check:
        renamed = self.outcome.facts.get("rename", {}).get(1, {})
        after = renamed.get("seconds")
        advice = (
            "Expect markers and logs to be seen late; ask whether the file system can be mounted with shorter attribute caching."
        )
        if after is None or renamed.get("torn"):
            problem = renamed.get("error") or ("it reads half of it" if renamed.get("torn") else "it reads the old one for 30 s")
            return failed("renames between nodes", f"a file that the other node replaced: {problem}", advice)
        if after > _LATE:
            return warning("renames between nodes", f"the new file is seen after {after:.1f} s", advice)
        return ok("renames between nodes", f"the new file is seen after {after:.2f} s")

    def _locks(self) -> Check:
        found = self.outcome.facts.get("locks", {})
        problem = next((fact["error"] for fact in found.values() if "error" in fact), None)
        advice = "Ask for locks that hold between nodes (NFS: no local_lock; Lustre: -o flock): else two jobs write to one run."
        if found.get(1, {}).get("excludes"):
            return ok("locks between nodes", "a lock that one node holds is refused on the other")
        return failed("locks between nodes", problem or "a lock that one node holds is given to the other too", advice)

    def _collective(self, backend: str) -> Check:
        name = f"{backend} between nodes"
        found = self.outcome.facts.get(backend, {})
        problem = next((fact["error"] for fact in found.values() if "error" in fact), None)
        if len(found) < 2 or problem:
            return failed(
                name, problem or "a node hung or died in it",
                "Name the nodes' network as `interface` in the cluster file (see `ip -br addr`); no firewall may part them.",
            )  # fmt: skip
        speed = min(float(fact["speed"]) for fact in found.values())
        text = f"64 MB are summed at {speed:,.0f} MB/s"
        if speed < _SLOW_NET and backend == "nccl":
            return warning(
                name,
                text,
                "Name the fast network as `interface` in the cluster file; training over several nodes will wait for this one.",
            )
        return ok(name, text)

    def _writing(self) -> Iterator[Check]:
        """The slower node stands for both, which write at the same time."""
        found = self.outcome.facts.get("write", {})
        speeds = [float(fact["speed"]) for fact in found.values() if "speed" in fact]
        if len(speeds) == self.outcome.nodes:
            yield folder.speed_check("writing", min(speeds))
        else:
            yield from self.each("write", "writing", lambda fact: folder.speed_check("writing", fact["speed"]))

    def _clock(self, fact: Fact) -> Check:
        apart = self.ahead - float(fact["ahead"])
        pairs = [float(each["apart"]) for each in self.outcome.facts.get("gloo", {}).values() if "apart" in each]
        if pairs and max(pairs) > folder.APART:
            return folder.clock_check("clock", max(pairs), "the other node")
        return folder.clock_check("clock", apart, "the login node")

    def _interface(self, fact: Fact) -> Check:
        name = self.cluster.interface
        if fact["address"]:
            return ok("interface", f"{name} has an address")
        there = ", ".join(fact["names"])
        problem = "has no IPv4 address" if name in fact["names"] else "does not exist"
        return failed(
            "interface", f"{name} {problem}; there are {there}", "Correct `interface` in the cluster file, or leave it out."
        )

    def _scratch(self, fact: Fact) -> Check:
        path = self.cluster.scratch
        if "error" in fact:
            return failed("scratch", f"{path}: {fact['error']}", "Correct `scratch` in the cluster file, or leave it out.")
        text = f"{path}: {size(fact['free'])} free"
        if fact["free"] < 1e9:
            return warning("scratch", text, "Temporary files may not fit: name another folder as `scratch` in the cluster file.")
        return ok("scratch", text)

    def _limits(self, fact: Fact) -> Check:
        count, pinned = fact["files"], fact["memlock"]
        text = f"{'any number of' if count is None else f'{count:,}'} open files"
        text += f", {'any' if pinned is None else size(pinned)} locked memory"
        if count is not None and count < _FEW_FILES:
            return warning(
                "limits",
                text,
                f"Write `ulimit -n {_FEW_FILES * 4}` into the site file: loaders run out of files otherwise.",
            )
        if pinned is not None and pinned < 1e9 and self.cluster.gpus_per_node:
            return warning("limits", text, "InfiniBand needs unlimited locked memory: ask for LimitMEMLOCK=infinity of slurmd.")
        return ok("limits", text)

    def _slurm(self) -> Check:
        fact = self.outcome.facts.get("slurm", {}).get(0, {})
        if not fact:
            return unchecked("requeue from a node", "the node did not come so far")
        if fact["missing"]:
            return failed(
                "requeue from a node", f"not on PATH there: {fact['missing']}",
                "Put Slurm's bin folder on PATH in the site file: jobs queue themselves again with scontrol.",
            )  # fmt: skip
        if fact["refused"]:
            return failed(
                "requeue from a node",
                fact["refused"],
                "See that nodes reach the Slurm controller: jobs queue themselves again with scontrol.",
            )
        return ok("requeue from a node", "scontrol reaches the controller")

    def _network(self) -> Iterator[Check]:
        if not self.cluster.network:
            yield ok("network", "none on the nodes, as the cluster file says: use `graft fetch` before and `graft sync` after")
            return
        advice = "Set network: false in the cluster file, bring weights with `graft fetch`, send curves with `graft sync`."
        for server in network.servers():

            def reached(fact: Fact, name: str = server.name) -> Check:
                host, problem = fact[name]
                shown = f"{name} ({host})"
                return warning(shown, f"not reached: {problem}", advice) if problem else ok(shown, "answers")

            yield from self.each("network", server.name, reached)
