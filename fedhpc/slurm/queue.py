"""The boundary to Slurm: sbatch, squeue, sacct, scancel as subprocesses with time limits. Nothing else calls them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhpc.app.logs import printable
from fedhpc.errors import ConfigError, PeersError
from fedhpc.slurm.settings import check_cluster

# Of the shell or job that submits: they would decide what a job asks for, or describe another job.
_FOREIGN = (
    *("SBATCH_", "SLURM_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_"),
    *("FEDHPC_JOB_", "FEDHPC_CONTAINER_", "FEDHPC_EXIT_", "FEDHPC_PROGRAM_", "PMI_", "PMIX_", "OMPI_COMM_", "PALS_"),
)
# How Slurm's commands find their cluster, and tell it who asks (a token, or the socket of sackd).
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS", "SLURM_JWT")
_KEPT_KINDS = ("SLURM_SACK_", "SLURM_JWT_")
_NAMES_CLUSTERS = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")
IN_CLUSTER = "FEDHPC_JOB_CLUSTER"
"""What our batch scripts export: the cluster that they run on, which Slurm's commands there find by themselves."""
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
# --parsable, the same from wrappers that take no options, and with the cluster where it is another one.
_TAKEN = re.compile(r"(?:Submitted batch job )?(\d{1,20})(?:;|(?: on cluster )|$)([\w.-]*)", re.ASCII)
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
    cluster: str = ""
    """Where it was found; empty: the cluster that Slurm's commands ask by themselves."""

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

    def submit(self, script: Path, cluster: str = "") -> tuple[str, str]:
        """Hand `script` to sbatch; the job's id, and the cluster that took it as sbatch names it, or else as asked.

        Raises ConfigError with sbatch's words if it refuses, DoubtError if it may or may not have taken the job.
        """
        try:
            done = self._call(["sbatch", "--parsable", str(script)], self.submit_s, cluster)
        except subprocess.TimeoutExpired:
            raise DoubtError(f"sbatch did not end within {self.submit_s:.0f} s") from None
        taken = _taken(done.stdout)
        if done.returncode == 0 and taken:
            return taken[0], taken[1] or cluster
        words = _words(done)
        if done.returncode <= 0 or _TRANSIENT.search(words):
            raise DoubtError(words)
        raise ConfigError(f"sbatch refused the job: {words}", "these are the cluster's own words")

    def named(self, names: Sequence[str], cluster: str = "") -> dict[str, Found]:
        """The newest job of each name that the cluster's queue, or else its accounting, knows. Raises NoAnswerError."""
        wanted = ",".join(names)
        if not names:
            return {}
        form = ["--noheader", f"--name={wanted}"]
        lines = self._ask(["squeue", *form, "--states=all", "--format=%i|%j|%T|%r"], cluster)
        found = _newest(_parse(lines, cluster))
        missing = [name for name in names if name not in found]
        if missing:
            found |= {f.name: f for f in self._accounted(missing, cluster)}
        return found

    def _accounted(self, names: Sequence[str], cluster: str) -> list[Found]:
        """From sacct, which many clusters lack or cannot reach: then nothing."""
        words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--name={','.join(names)}"]
        try:
            lines = self._ask([*words, "--starttime=now-30days", "--format=JobID,JobName%200,State"], cluster)
        except NoAnswerError:
            return []
        return list(_newest(_parse(lines, cluster)).values())

    def cancel(self, jobs: Sequence[str], cluster: str = "") -> None:
        """Cancel jobs of one cluster by id; those that have ended are passed over. Raises PeersError."""
        if not jobs:
            return
        try:
            self._ask(["scancel", "--quiet", *jobs], cluster)
        except NoAnswerError as error:
            raise PeersError(f"scancel failed: {error}", "see `squeue --me`") from None

    def _ask(self, words: list[str], cluster: str) -> str:
        try:
            done = self._call(words, self.ask_s, cluster)
        except subprocess.TimeoutExpired:
            raise NoAnswerError(f"{words[0]} did not end within {self.ask_s:.0f} s") from None
        if done.returncode:
            raise NoAnswerError(_words(done))
        return done.stdout

    def _call(self, words: list[str], limit_s: float, cluster: str) -> subprocess.CompletedProcess[str]:
        named, environment = at_cluster(cluster, self.environment)
        try:
            return subprocess.run(
                [words[0], *named, *words[1:]],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit_s,
                env=environment,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except FileNotFoundError:
            raise ConfigError(
                f"there is no {words[0]} on this machine", "submit on a login node of a Slurm cluster"
            ) from None


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what another job or a habit of the shell left there."""
    return {
        k: v for k, v in environment.items() if k in _KEPT or k.startswith(_KEPT_KINDS) or not k.startswith(_FOREIGN)
    }


def at_cluster(cluster: str, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """(options, environment) of a command of Slurm that is to ask `cluster`; empty: the one of this machine.

    Always by an option, since sacct reads no SLURM_CLUSTERS; but not within a job of that cluster, where the option
    would only make the command need the accounting database.
    """
    cleaned = clean(environment)
    here = environment.get(IN_CLUSTER, "").casefold() == cluster.casefold()
    if not cluster or here or cleaned.get("SLURM_CLUSTERS", "").casefold() != cluster.casefold():
        cleaned.pop("SLURM_CLUSTERS", None)
    return ([] if not cluster or here else ["-M", cluster]), cleaned


def named_cluster(environment: Mapping[str, str]) -> str:
    """The cluster that the shell names, as a site's module may do; empty if none.

    Raises ConfigError if it names several, or all.
    """
    for variable in _NAMES_CLUSTERS:
        name = environment.get(variable, "").strip()
        if name:
            return check_cluster(name, variable)
    return ""


def _taken(answer: str) -> tuple[str, str] | None:
    """(job, cluster) of what sbatch printed; None for an answer of another form."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    found = _TAKEN.fullmatch(lines[-1]) if lines else None
    return (found[1], found[2]) if found else None


def _words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    return printable("; ".join(lines))[:600] or f"exit code {done.returncode} without a message"


def _parse(lines: str, cluster: str) -> list[Found]:
    found = []
    for line in lines.splitlines():
        shown, name, state, reason = (*line.strip().split("|"), "", "", "")[:4]
        job = _JOB.fullmatch(shown)
        if job and name:
            found.append(Found(job[1], name, (state.split() or ["UNKNOWN"])[0].rstrip("+"), printable(reason), cluster))
    return found


def _newest(found: list[Found]) -> dict[str, Found]:
    """The newest job of each name; of several parts of one job, one that lives."""
    return {f.name: f for f in sorted(found, key=lambda f: (int(f.job), f.alive))}
