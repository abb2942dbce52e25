"""The same surroundings for every test, whoever started it: a terminal, a background job, nohup, a job of Slurm.

A shell's background job, `nohup` and some CI runners start programs that ignore SIGINT, SIGQUIT or SIGHUP, or with
signals blocked, and every child inherits that: one that a test interrupts would never hear it. The environment may name
a proxy, a launcher's ranks or a Slurm job; the umask may be any.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

SIGNALS = (
    *(signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)
# What a launcher, a batch job or a user's shell may have set. The way to MPI (PATH, LD_LIBRARY_PATH) stays.
_LAUNCHERS = ("SLURM", "SBATCH", "SQUEUE_", "SCANCEL_", "OMPI_", "PRTE_", "PMI", "MPI_LOCAL", "PALS_", "FLUX_")
# A rank that waits asks MPI without a pause. Open MPI lets others on only where it starts more ranks than cores itself:
# not with two ranks, nor under Slurm, and never for the other tests beside it.
YIELDING = {"OMPI_MCA_mpi_yield_when_idle": "1"}
_OWN = ("FEDHPC_NO_SKIP", "FEDHPC_TEST_CASES")
_SHELL = ("CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "LINES", "PYTHONWARNINGS", "REQUESTS_CA_BUNDLE", "TZ")


def settle() -> None:
    """Make this process's signals, umask and environment those that tests expect, for it and all that it starts.

    A signal that this process was told to ignore does nothing to it still; what it executes will heed it.
    """
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    for name in list(os.environ):
        foreign = name.startswith(_LAUNCHERS) or name.lower().endswith("_proxy") or name in _SHELL
        if foreign or (name.startswith("FEDHPC_") and name not in _OWN):
            del os.environ[name]
    os.environ |= {"LC_ALL": "C.UTF-8", "TERM": "dumb"} | YIELDING


def _nothing(number: int, frame: FrameType | None) -> None:
    """Where the signal was ignored."""
