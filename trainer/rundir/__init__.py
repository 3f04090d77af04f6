"""The run folder: its paths, its markers, its lease and its record. Torch-free: the launcher and the trainer meet here."""

from trainer.rundir.folder import Marker, RunDir, write_atomically
from trainer.rundir.lease import Lease, LeaseLostError
from trainer.rundir.leave import exit_now
from trainer.rundir.lock import locked
from trainer.rundir.place import node_name, slurm_start
from trainer.rundir.record import Record, read_points
from trainer.rundir.sizes import Sizes, TooLargeError, read_sizes

__all__ = [
    "Lease",
    "LeaseLostError",
    "Marker",
    "Record",
    "RunDir",
    "Sizes",
    "TooLargeError",
    "exit_now",
    "locked",
    "node_name",
    "read_points",
    "read_sizes",
    "slurm_start",
    "write_atomically",
]
