"""A rank's exit code in a file, for the batch script.

`srun --kill-on-bad-exit` kills the other ranks as soon as one has left with 75 and then reports the kill (143), so the
batch script reads the code here (jobs/templates/link.sh). After 75 it also wants to know whether an exchange waits for
other sites, or for this site's next training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

STOPPED = 75
_RANK = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")


def leave_exit_code(code: int, *, untrained: bool = False, environment: Mapping[str, str] = os.environ) -> None:
    """Write `code`, and "train" if that is what comes next, where the batch script looks, if one started this rank.

    Success writes nothing. An error of any rank stands before another rank's 75. What cannot be written is left out:
    the launcher's code holds then.
    """
    path = environment.get("FEDHPC_EXIT_FILE", "")
    if not code or not path or not any(name in environment for name in _RANK):
        return
    first = os.O_EXCL if code == STOPPED else os.O_TRUNC
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | first, 0o600)
    except OSError:
        return
    try:
        os.write(handle, b"%d%s\n" % (code, b" train" if untrained else b""))
    finally:
        os.close(handle)
