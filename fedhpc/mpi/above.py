"""Finds the launcher above this rank in the process tree of this machine.

Open MPI's mpirun ends its ranks about half a second after a signal that ends it itself, and passes on nothing that they
write in that time. srun and the daemons of other nodes are no such launchers.
"""

from __future__ import annotations

import os
from pathlib import Path

# As the kernel knows it -> as people start it.
NAMES = {
    "mpirun": "mpirun",
    "prterun": "mpirun",
    "orterun": "mpirun",
    "mpiexec": "mpiexec",
    "mpiexec.hydra": "mpiexec",
    "prun": "prun",
}
_MOST = 12  # wrappers between the launcher and a rank: shells, containers


_DAEMON = "prted"  # of Open MPI 5, on the other nodes


def launcher() -> tuple[int, str] | None:
    """(process number, name) of the mpirun that started this rank here; None without one, or where /proc is missing."""
    process = os.getpid()
    for _ in range(_MOST):
        process, name = _parent(process)
        if name in NAMES:
            return process, NAMES[name]
    return None


def is_parent() -> bool:
    """Whether it, or its daemon, started this very process, so that it sees this process's exit code."""
    name = _parent(os.getpid())[1]
    return name in NAMES or name == _DAEMON


def tell(process: int, text: str) -> bool:
    """Write `text` where the launcher's own messages go; returns False if that cannot be reached."""
    try:
        handle = os.open(
            f"/proc/{process}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError:
        return False
    try:
        return os.write(handle, text.encode()) > 0
    except OSError:
        return False
    finally:
        os.close(handle)


def _parent(process: int) -> tuple[int, str]:
    """(process number, name) of the parent; (0, "") where that cannot be seen."""
    try:
        # The name stands in parentheses and may hold any character, these too.
        parent = int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        return parent, Path(f"/proc/{parent}/comm").read_text(errors="replace").strip()
    except (OSError, ValueError, IndexError):
        return 0, ""
