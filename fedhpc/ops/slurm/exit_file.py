"""A rank's exit code in a file, for the batch script.

`srun --kill-on-bad-exit` kills the other ranks as soon as one has left with 75 and then reports the kill (143), so the
batch script reads the code here (jobs/templates/link.sh).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

STOPPED = 75


def leave_exit_code(code: int, environment: Mapping[str, str] = os.environ) -> None:
    """Write `code` where the batch script looks, if a batch script started this rank and all is not well.

    An error of any rank stands before another rank's 75. What cannot be written is left out: the launcher's code
    holds then.
    """
    path = environment.get("FEDHPC_EXIT_FILE", "")
    if not code or not path or "SLURM_PROCID" not in environment:
        return
    first = os.O_EXCL if code == STOPPED else os.O_TRUNC
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | first, 0o600)
    except OSError:
        return
    try:
        os.write(handle, b"%d\n" % code)
    finally:
        os.close(handle)
