"""Whether one round fits into the job's time, judged by the rounds so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.app.life.job_life import percentile_95
from fedhpc.app.telemetry import METRICS_FILE, number, read_metrics, table
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.subject import Subject
from fedhpc.slurm.plan import SCALE
from fedhpc.slurm.settings import walltime_s
from fedhpc.wire.units import took

GROUP = "Time"
_RECENT = 100  # rounds


def walltime(subject: Subject) -> Finding:
    """Twice the 95th percentile of a round, a checkpoint and the margin, against [slurm] time."""
    asked = subject.asked
    if not subject.submits:
        return skipped("the site file has no [slurm], and no profile is given")
    total = walltime_s(asked.time)
    path = None if subject.directory is None else subject.directory / METRICS_FILE
    if path is None or not path.exists():
        return warn(
            f"no round was measured yet, so it is not known whether one fits into {asked.time}",
            "look again after the first rounds",
        )
    found = fits(read_metrics(path), total, subject.life.margin_s, waits=subject.life.kind != "detached")
    # In a job it is too late to ask for more, and a round that is cut short is kept: the chain goes on, if slowly.
    return warn(found.what, found.fix) if subject.quick and found.state == "fail" else found


def fits(records: Sequence[Mapping[str, Any]], total_s: float, margin_s: float, *, waits: bool) -> Finding:
    """`waits`: a job also holds the wait for other sites, whose queues may have made rounds long."""
    seconds = [table(record, "seconds") for record in records[-_RECENT:] if record.get("final") is not True]
    rounds = [(v, v - _others(s)) for s in seconds if (v := number(s.get("total"))) is not None]
    if not rounds:
        return warn("no round has its time in metrics.jsonl", "look again after the first rounds")
    checkpoint_s = percentile_95([number(s.get("checkpoint")) or 0.0 for s in seconds])
    whole_s, own_s = percentile_95([v for v, _ in rounds]), percentile_95([v for _, v in rounds])
    room_s = total_s - margin_s - checkpoint_s
    words = f"this site's part of a round takes up to {took(own_s)}, a checkpoint {took(checkpoint_s)}"
    if SCALE * own_s > room_s:
        return fail(
            f"{words}: doubled, with a margin, that is {took(total_s - room_s + SCALE * own_s)}, "
            f"and [slurm] time gives {took(total_s)}",
            "ask for more time, take fewer local steps in [train], or a partition with a longer limit",
        )
    if waits and SCALE * whole_s > room_s:
        return warn(
            f"{words}, but with the wait for others a round takes up to {took(whole_s)}, and [slurm] time gives "
            f"{took(total_s)}",
            'ask for more time, or let no job wait: [life] kind = "detached"',
        )
    return ok(f"{words}; {int(room_s // max(whole_s if waits else own_s, 1e-3))} rounds fit into {took(total_s)}")


def _others(seconds: Mapping[str, Any]) -> float:
    """Seconds in which other sites were waited for, as app/life/history.py takes them off."""
    return number(seconds.get("agree")) or 0.0


CHECKS = (Check("walltime", GROUP, "no round begins that cannot end before the job does", walltime),)
