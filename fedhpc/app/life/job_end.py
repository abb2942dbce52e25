"""What the batch system says about this job: when it ends, and whether it follows another one."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime

_ASK_S = 10.0
_PREDECESSOR_S = 60.0
_log = logging.getLogger("fedhpc.app")


def job_end(environment: Mapping[str, str] = os.environ) -> float | None:
    """Unix time in seconds at which this job is killed; None outside a job, or without a limit.

    Our batch scripts set FEDHPC_JOB_END, newer Slurm sets SLURM_JOB_END_TIME; an older Slurm is asked.
    """
    for name in ("FEDHPC_JOB_END", "SLURM_JOB_END_TIME"):
        text = environment.get(name, "")
        if re.fullmatch(r"[0-9]{9,11}", text):
            return float(text)
    job = environment.get("SLURM_JOB_ID", "")
    return _ask_slurm(job) if re.fullmatch(r"[0-9]{1,10}", job) else None


def _ask_slurm(job: str) -> float | None:
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%e"],
            capture_output=True, text=True, timeout=_ASK_S, check=True, stdin=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k != "SLURM_CLUSTERS"} | {"SLURM_TIME_FORMAT": "%s"},
        ).stdout.strip()  # fmt: skip
        # A Slurm that ignores the format answers in local time, without a zone.
        return float(answer) if answer.isdigit() else datetime.fromisoformat(answer).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        _log.warning("Slurm does not say when job %s ends (%s): its end is not planned for", job, type(error).__name__)
        return None


def ledger_wait_s(environment: Mapping[str, str] = os.environ) -> float:
    """How long to wait for another run in the same directory: it may be the job before, at its end.

    Slurm starts a requeued job, or the next of a chain, while the processes of the one before are still ending.
    """
    follows = environment.get("SLURM_RESTART_COUNT", "0") != "0" or environment.get("SLURM_JOB_DEPENDENCY", "") != ""
    return _PREDECESSOR_S if follows else 0.0
