"""The boundary to Slurm: sbatch, squeue, sacct, scancel as subprocesses with time limits. Nothing else calls them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhpc.errors import ConfigError, PeersError
from fedhpc.ops.logs import printable

# Of the shell or job that submits: they would decide what a job asks for, or tell it of another job.
_FOREIGN = (
    *("SBATCH_", "SLURM_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_"),
    *("FEDHPC_JOB_", "FEDHPC_EXIT_", "FEDHPC_PROGRAM_", "PMI_", "PMIX_", "OMPI_COMM_", "PALS_"),
)
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_TIME_FORMAT")
_TRANSIENT = re.compile(
    "|".join(
        (
            *("socket timed out", "unable to contact slurm controller", "zero bytes were transmitted", "try again"),
            *("connection refused", "connection timed out", "communication connection failure", "temporarily"),
            *("standby mode", "message receive failure", "send/recv operation", "unable to establish controller"),
            *("connect failure", "host is unreachable", "network is unreachable"),
        )
    ),
    re.IGNORECASE,
)
_JOB = re.compile(r"(\d{1,20})(?:[_+].*)?")  # a task of an array is 12_3, a part of a heterogeneous job 12+1
ALIVE = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESIZING",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
    "SPECIAL_EXIT",
    "REQUEUE_FED",
    "RESV_DEL_HOLD",
)


class DoubtError(Exception):
    """The queue did not say whether it took the job."""


class NoAnswerError(Exception):
    """The queue could not be asked; `words` are its own."""


@dataclass(frozen=True)
class Found:
    """A job as the queue or its accounting shows it."""

    job: str
    name: str
    state: str
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ALIVE


@dataclass(frozen=True)
class Queue:
    """Slurm's client commands, found on PATH."""

    submit_s: float = 120.0
    ask_s: float = 60.0
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def submit(self, script: Path) -> str:
        """Hand `script` to sbatch; the job's id.

        Raises ConfigError with sbatch's words if it refuses, DoubtError if it may or may not have taken the job.
        """
        try:
            done = self._call(["sbatch", "--parsable", str(script)], self.submit_s)
        except subprocess.TimeoutExpired:
            raise DoubtError(f"sbatch did not end within {self.submit_s:.0f} s") from None
        job = _JOB.fullmatch(done.stdout.strip().partition(";")[0])
        if done.returncode == 0 and job:
            return job[1]
        words = _words(done)
        if done.returncode <= 0 or _TRANSIENT.search(words):
            raise DoubtError(words)
        raise ConfigError(f"sbatch refused the job: {words}", "these are the cluster's own words")

    def named(self, names: Sequence[str]) -> dict[str, Found]:
        """The newest job of each name that the queue, or else its accounting, knows. Raises NoAnswerError."""
        wanted = ",".join(names)
        if not names:
            return {}
        form = ["--noheader", f"--name={wanted}"]
        lines = self._ask(["squeue", *form, "--states=all", "--format=%i|%j|%T|%r"])
        found = _newest(_parse(lines))
        missing = [name for name in names if name not in found]
        if missing:
            found |= {f.name: f for f in self._accounted(missing)}
        return found

    def _accounted(self, names: Sequence[str]) -> list[Found]:
        """From sacct, which many clusters lack or cannot reach: then nothing."""
        words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--name={','.join(names)}"]
        try:
            lines = self._ask([*words, "--starttime=now-30days", "--format=JobID,JobName%200,State"])
        except NoAnswerError:
            return []
        return list(_newest(_parse(lines)).values())

    def cancel(self, jobs: Sequence[str]) -> None:
        """Cancel jobs by id; those that have ended are passed over. Raises PeersError."""
        if not jobs:
            return
        try:
            self._ask(["scancel", "--quiet", *jobs])
        except NoAnswerError as error:
            raise PeersError(f"scancel failed: {error}", "see `squeue --me`") from None

    def _ask(self, words: list[str]) -> str:
        try:
            done = self._call(words, self.ask_s)
        except subprocess.TimeoutExpired:
            raise NoAnswerError(f"{words[0]} did not end within {self.ask_s:.0f} s") from None
        if done.returncode:
            raise NoAnswerError(_words(done))
        return done.stdout

    def _call(self, words: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                words,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_s,
                env=clean(self.environment),
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except FileNotFoundError:
            raise ConfigError(
                f"there is no {words[0]} on this machine", "submit on a login node of a Slurm cluster"
            ) from None


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what another job or a habit of the shell left there."""
    return {k: v for k, v in environment.items() if k in _KEPT or not k.startswith(_FOREIGN)}


def _words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return printable("; ".join(lines))[:600] or f"exit code {done.returncode}, and no words"


def _parse(lines: str) -> list[Found]:
    found = []
    for line in lines.splitlines():
        shown, name, state, reason = (*line.strip().split("|"), "", "", "")[:4]
        job = _JOB.fullmatch(shown)
        if job and name:
            found.append(Found(job[1], name, (state.split() or ["UNKNOWN"])[0].rstrip("+"), printable(reason)))
    return found


def _newest(found: list[Found]) -> dict[str, Found]:
    """The newest job of each name; of several parts of one job, one that lives."""
    return {f.name: f for f in sorted(found, key=lambda f: (int(f.job), f.alive))}
