"""Machines for `fedhpc doctor`: commands that say what a test wants, site files, and what a check must find there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import edit, write_federation

from fedhpc.doctor.check import Finding, _guarded
from fedhpc.doctor.checks import CHECKS
from fedhpc.doctor.subject import Subject, open_subject

CONFIG = """\
Configuration data as of 2026-11-22T04:00:00
ClusterName             = alpha
JobRequeue              = 1
KillWait                = 30 sec
MpiDefault              = pmix
PreemptType             = preempt/none
RequeueExit             = (null)
RequeueExitHold         = (null)
SlurmctldParameters     = (null)
SLURM_CONF              = /etc/slurm/slurm.conf
SLURM_VERSION           = 23.11.4

Slurmctld(primary) at ctl is UP
"""
PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL AllowAccounts=abc,def AllowQos=ALL Default=YES GraceTime=0 MaxNodes=4 MaxTime=1-00:00:00 State=UP TotalNodes=8
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL DenyQos=long Default=NO GraceTime=120 MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TotalNodes=2
PartitionName=old AllowGroups=ALL AllowAccounts=ALL Default=NO MaxNodes=1 MaxTime=30:00 State=DOWN TotalNodes=1
"""  # noqa: E501
MPI_LIST = "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4,pmix_v5\n"


def commands(folder: Path, scripts: Mapping[str, str]) -> dict[str, str]:
    """An environment whose PATH has exactly these commands: name -> lines of sh, which finds no others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    dropped = ("SLURM", "OMPI_", "PMI", "NCCL_", "GLOO_", "CUDA_VISIBLE", "ROCR_", "LD_LIBRARY_PATH", "TMPDIR")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return kept | {"PATH": str(folder)}


def says(text: str, code: int = 0) -> str:
    """The script of a command that prints `text`."""
    return f"printf '%s' {shlex.quote(text)}\nexit {code}"


def complains(text: str, code: int = 1) -> str:
    """The script of a command that fails."""
    return f"printf '%s\\n' {shlex.quote(text)} >&2\nexit {code}"


def slurm(
    *,
    config: str = CONFIG,
    partitions: str = PARTITIONS,
    mpi: str = MPI_LIST,
    job: str = "JobId=7 Requeue=1\n",
    sbatch: str = says("sbatch: Job 8 to start at 2026-11-22T05:00:00"),
    version: str = "slurm 23.11.4",
) -> dict[str, str]:
    """Slurm's commands."""
    return {
        "scontrol": f'case "$2" in\nconfig) {says(config)};;\n'
        f"partition) {says(partitions)};;\njob) {says(job)};;\nesac",
        "srun": says(mpi),
        "squeue": "",
        "sbatch": f'case "$1" in\n--version) {says(version)};;\nesac\n{sbatch}',
    }


def subject(folder: Path, scripts: Mapping[str, str] | None = None, **changes: Any) -> Subject:
    """A site of a federation in `folder`, on a machine with these commands; as a rehearsal's, without a relay.

    `slurm`: lines of [slurm]; `site`: (old, new) texts in its file; `environment`: further variables; `library`,
    `route`: what would be found; `root`: the machine's root directory; `quick`.
    """
    federation = folder / "federation.toml"
    if not federation.exists():
        write_federation(folder, 3, stores=False)
    path = folder / "sites" / "aa.toml"
    with path.open("a") as file:
        for table in ("slurm", "life"):
            if table in changes:
                file.write(f"\n[{table}]\n{changes[table]}\n")
    for old, new in changes.get("site", ()):
        edit(path, old, new)
    environment = commands(folder / "bin", scripts or {}) | changes.get("environment", {})
    made = open_subject(path, environment, federation=federation, quick=changes.get("quick", False))
    for fact in ("library", "route", "root"):
        if fact in changes:
            made.__dict__[fact] = changes[fact]
    return made


def found(name: str, subject: Subject) -> Finding:
    """What the check of this name finds."""
    (check,) = [check for check in CHECKS if check.name == name]
    return _guarded(subject, check)


def fails(name: str, subject: Subject, *words: str, code: int) -> None:
    """The check fails with this exit code, says `words` of what it saw, and how to mend it."""
    finding = found(name, subject)
    assert (finding.state, finding.exit_code) == ("fail", code), finding
    _says(finding, words)
    assert finding.fix, finding


def warns(name: str, subject: Subject, *words: str) -> None:
    finding = found(name, subject)
    assert (finding.state, finding.exit_code) == ("warn", 0), finding
    _says(finding, words)
    assert finding.fix, finding


def passes(name: str, subject: Subject, *words: str) -> None:
    finding = found(name, subject)
    assert (finding.state, finding.exit_code, finding.fix) == ("ok", 0, ""), finding
    _says(finding, words)


def skips(name: str, subject: Subject, *words: str) -> None:
    finding = found(name, subject)
    assert (finding.state, finding.exit_code) == ("skipped", 0), finding
    _says(finding, words)


def _says(finding: Finding, words: tuple[str, ...]) -> None:
    for word in words:
        assert word in f"{finding.what} | {finding.fix}", finding
