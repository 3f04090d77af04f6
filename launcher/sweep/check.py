"""What can be wrong with a member besides its run file: files, data, arithmetic. Looked at once for members that share it."""

from __future__ import annotations

from launcher.machine import Machine
from launcher.plan import Counts, Plan, plan
from launcher.start import counts, look
from launcher.sweep.members import Member, shown
from trainer.config import Run, UserError


class Check:
    """Checks members for a machine; remembers which files are there and how many samples a data section has."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._there: set[tuple[tuple[str, str], ...]] = set()

    def plan(self, member: Member, run: Run, machine: Machine) -> Plan:
        """The plan of a member, as `run` says it (with a cluster's values). Raises UserError that names the member."""
        data, files = run.data.model_dump_json(), tuple((m.source, m.weights) for m in run.models.values())
        try:
            if files not in self._there:
                look(run, member.rundir)
                self._there.add(files)
            if data not in self._counts:
                self._counts[data] = counts(run)  # which the seed of a hold-out does not change
            return plan(run, self._counts[data], machine)
        except UserError as error:
            raise UserError(f"{member.name} ({shown(member.settings)}): {error}") from None
