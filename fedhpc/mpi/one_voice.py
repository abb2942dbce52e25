"""One rank speaks where several of a job meet the same error, or one that follows from the first.

The first of a node speaks. MPI is not used: other ranks may be in the middle of a collective. What marks that
somebody has spoken goes with the job: a file in the launcher's own folder, or else a name that the kernel forgets with
the process that holds it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Literal

Kind = Literal["failed", "stopped"]

_FIRST_NODE_S = 1.0  # how long other nodes leave to the one with rank 0
_HOLD_S = 0.5  # how long a name is held at least, for ranks that come a little later
_END_S = 10.0  # how long a silent rank waits to be ended by the one that spoke
_JOBS = ("PMIX_NAMESPACE", "PMI_KVSNAME", "PMI_JOBID", "SLURM_JOB_ID", "SLURM_STEP_ID", "OMPI_MCA_ess_base_jobid")


class OneVoice:
    """Whether this rank speaks; for each kind it is asked once, and then it stays so."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._environment, self._pause = environment, pause
        self._mine: dict[Kind, bool] = {}
        self._held: list[socket.socket] = []

    def speaks(self, kind: Kind, *, in_mpi: bool) -> bool:
        """Whether this rank is the one of several that tells why the job ends. `in_mpi`: MPI is started.

        Where MPI is not, the process may be a command of a shell that a launcher started, and not the last one.
        """
        if kind not in self._mine:
            if _may_be_elsewhere(self._environment):
                self._pause(_FIRST_NODE_S)
            name = f"fedhpc-{kind}-{os.getuid()}-{_job(self._environment)}"
            folder = self._environment.get("PMIX_SERVER_TMPDIR", "") if in_mpi else ""
            mine = _make(os.path.join(folder, name)) if folder else None
            self._mine[kind] = self._hold(name) if mine is None else mine
        return self._mine[kind]

    def linger(self) -> None:
        """After it has spoken: ranks with the same error, a moment later, must find the name taken."""
        if self._held:
            self._pause(_HOLD_S)

    def await_end(self) -> None:
        """A silent rank: the one that spoke ends the job, with the exit code that goes with its message."""
        self._pause(_END_S)

    def _hold(self, name: str) -> bool:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(b"\0" + name.encode())
        except OSError as error:
            held.close()
            return error.errno != errno.EADDRINUSE  # two messages are better than none
        self._held.append(held)
        return True


def _make(path: str) -> bool | None:
    """Whether this rank made the file; None if no rank can."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    except OSError:
        return None
    return True


def _job(environment: Mapping[str, str]) -> str:
    """The same for all ranks of a job on a node, and for no other job."""
    parts = [environment.get(name, "") for name in _JOBS]
    if not any(parts):
        parts.append(str(os.getppid()))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]


def _may_be_elsewhere(environment: Mapping[str, str]) -> bool:
    """Whether rank 0 may be on another node."""
    if environment.get("SLURM_NODEID", "0") != "0":
        return True
    rank = environment.get("OMPI_COMM_WORLD_RANK", "0")
    return environment.get("OMPI_COMM_WORLD_LOCAL_RANK", rank) != rank
