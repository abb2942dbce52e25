"""Checks of Slurm: that it answers, that the partition takes what the site asks, and what it does to a job's end."""

from __future__ import annotations

from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.commands import find
from fedhpc.doctor.slurm_facts import Row, fields, major_minor, seconds_of, whole
from fedhpc.doctor.subject import Subject
from fedhpc.slurm.extra import option_words
from fedhpc.slurm.render import resources
from fedhpc.slurm.settings import walltime_s

GROUP = "Slurm"
_COMMANDS = ("sbatch", "srun", "scontrol", "squeue")
_NO_SLURM = "there is no Slurm on this machine"
_NOT_ASKED = "the site file has no [slurm], and no profile is given"
_SILENT = "`scontrol show config` gives no answer"
_EARLY_S = 60  # Slurm may send --signal up to so much earlier
_BLIND = ("ALL", "", "(null)")


def tools(subject: Subject) -> Finding:
    """Slurm's commands are here, find their controller, and have its version."""
    missing = [name for name in _COMMANDS if find(name, subject.environment) is None]
    if len(missing) == len(_COMMANDS):
        return skipped(_NO_SLURM)
    if missing:
        return fail(f"{', '.join(missing)} not found beside the others", "put all of Slurm's commands on PATH")
    slurm = subject.slurm
    if not slurm.config:
        named = subject.environment.get("SLURM_CONF", "")
        where = f"SLURM_CONF is {named}" if named else "SLURM_CONF is not set"
        where += f", cluster {slurm.cluster}" if slurm.cluster else ""
        what = f"the controller gives no answer ({where}): {slurm.answer.words}"
        if subject.submits and not subject.in_job:
            hint = "is this one of its nodes? `scontrol ping` tells who is asked"
            return fail(what, f"`sacctmgr show clusters` lists the clusters; {hint}" if slurm.cluster else hint)
        return warn(what, "it may be restarting, or this is not one of its nodes: see `scontrol ping`")
    mine, its = slurm.call("sbatch", "--version").out.strip(), slurm.config.get("SLURM_VERSION", "")
    ours, theirs = major_minor(mine), major_minor(its)
    if ours and theirs and ours > theirs:
        return warn(
            f"sbatch is {mine}, newer than its controller {its}", "load the commands that the cluster installed"
        )
    return ok(f"{mine or 'sbatch'}, cluster {slurm.config.get('ClusterName', 'without a name')}, controller {its}")


def profile(subject: Subject) -> Finding:
    """What the cluster's profile knows: its partitions, and whether compute nodes reach the outside."""
    known = subject.profile
    if known is None or not subject.submits:
        return skipped(_NOT_ASKED)
    known.check(subject.asked)
    if known.about.outbound == "no" and subject.site is not None and subject.site.exchange.kind == "https":
        return warn(
            f"compute nodes of {known.name} are not known to reach the outside",
            'use [exchange] kind = "spool", with a carrier where a route is',
        )
    return ok(f"{known.name}: {known.about.title}")


def partition(subject: Subject) -> Finding:
    """The partition exists, is up and lets this account in; of several that are named, one that does is enough."""
    reason = _no_answer(subject)
    if reason:
        return skipped(reason)
    asked, known = subject.asked, subject.slurm.partitions
    unknown = [name for name in asked.partition.split(",") if name and name not in known]
    if unknown:
        return fail(f"there is no partition '{unknown[0]}'", f"set [slurm] partition to one of {', '.join(known)}")
    rows = subject.slurm.chosen(asked.partition)
    if not rows:
        return warn("no partition is asked for, and the cluster has no default one", f"one of {', '.join(known)}")
    return _best([partition_takes(row, asked.account, asked.qos, known) for row in rows])


def partition_takes(row: Row, account: str, qos: str, known: dict[str, Row]) -> Finding:
    """One partition, by its row of `scontrol show partition`."""
    name = row["PartitionName"]
    if row.get("State") != "UP":
        up = ", ".join(n for n, r in known.items() if r.get("State") == "UP") or "none is up"
        return fail(f"partition {name} is {row.get('State')}", f"wait, or take another: {up}")
    for what, key, value in (("Accounts", "account", account), ("Qos", "qos", qos)):
        allowed, denied = row.get(f"Allow{what}", "ALL"), row.get(f"Deny{what}", "")
        if value and allowed not in _BLIND and value.lower() not in allowed.lower().split(","):
            return fail(f"partition {name} is for {what.lower()} {allowed}, not {value}", f"set [slurm] {key}")
        if value and denied not in _BLIND and value.lower() in denied.lower().split(","):
            return fail(f"partition {name} refuses {what.lower()} {denied}", f"set another [slurm] {key}")
    return ok(f"partition {name} is up, {row.get('TotalNodes', '?')} nodes")


def limits(subject: Subject) -> Finding:
    """Time and nodes asked for are within the partition's limits."""
    reason = _no_answer(subject)
    rows = [] if reason else subject.slurm.chosen(subject.asked.partition)
    if not rows:
        return skipped(reason or "the partition is not known")
    rows = [row for row in rows if row.get("State") == "UP"] or rows
    return _best([partition_allows(row, subject.asked.time, subject.asked.nodes) for row in rows])


def partition_allows(row: Row, time: str, nodes: int) -> Finding:
    """One partition's limits; `time` as in [slurm]."""
    name, most = row["PartitionName"], row.get("MaxTime", "UNLIMITED")
    have = seconds_of(most)
    if have is not None and walltime_s(time) > have:
        return fail(f"[slurm] time {time}, but partition {name} allows {most}", f'set time = "{most}" or less')
    for key, limit in (("MaxNodes", "at most"), ("TotalNodes", "only")):
        count = whole(row.get(key, ""))
        if count is not None and nodes > count:
            return fail(f"[slurm] nodes = {nodes}, but partition {name} has {limit} {count}", "ask for fewer nodes")
    return ok(f"{time} of {most}, {nodes} of {row.get('MaxNodes', '?')} nodes")


def _best(found: list[Finding]) -> Finding:
    """A job goes to the first of its partitions that takes it."""
    return next((f for f in found if f.state == "ok"), found[0])


def accepted(subject: Subject) -> Finding:
    """`sbatch --test-only` takes a job with these options."""
    reason = _no_answer(subject)
    if reason or not subject.submits:
        return skipped(reason or _NOT_ASKED)
    options = [f"--{name}={value}" for name, value in resources(subject.asked)]
    options += [word for option in subject.asked.extra for word in option_words(option)]
    words = ["sbatch", "--test-only", *options, "--wrap", "true"]
    answer = subject.slurm.call(*words)
    if answer.code == 0:
        said = (answer.out + answer.err).strip()
        return ok(answer.words.removeprefix("sbatch: ") if said else "sbatch takes it")
    if answer.code is None:
        return warn("`sbatch --test-only` gives no answer", "the controller is busy: try again")
    return fail(
        f"sbatch refuses: {answer.words.removeprefix('sbatch: error: ')}", f"it was asked: {' '.join(words[2:-2])}"
    )


def requeue(subject: Subject) -> Finding:
    """A job may be requeued."""
    reason = _no_answer(subject)
    if reason:
        return skipped(reason)
    config = subject.slurm.config
    job = subject.environment.get("SLURM_JOB_ID", "")
    if subject.in_job and job:
        mine = fields(subject.slurm.call("scontrol", "show", "job", job, "--oneliner").out)
        if mine.get("Requeue") == "0":
            return warn(
                f"job {job} may not be requeued (Requeue=0)",
                'submit with --requeue, or live in a chain: [life] kind = "chained"',
            )
    if "75" in _codes(config.get("RequeueExit", "")) | _codes(config.get("RequeueExitHold", "")):
        return warn(
            "the cluster itself requeues jobs that end with 75 (RequeueExit)",
            'live in a chain, [life] kind = "chained", so that no job is requeued twice',
        )
    if config.get("JobRequeue") == "0":
        return warn(
            "the cluster requeues no job by itself (JobRequeue = 0)",
            'the job script asks with --requeue; if that is refused too, [life] kind = "chained" needs no requeue',
        )
    return ok("jobs may be requeued")


def _codes(text: str) -> set[str]:
    return {code.strip() for code in text.split(",")}


def signals(subject: Subject) -> Finding:
    """The warning before the walltime comes early enough to checkpoint and leave."""
    asked, life = subject.asked, subject.life
    total = walltime_s(asked.time)
    if asked.signal_s < _EARLY_S:
        return warn(
            f"[slurm] signal_s = {asked.signal_s}: a step and a checkpoint must end in that time",
            f"at least {_EARLY_S}: Slurm looks at the clock once a minute",
        )
    if asked.signal_s < life.margin_s:
        return warn(
            f"[slurm] signal_s = {asked.signal_s}, but [life] margin_s = {life.margin_s:.0f}: "
            "the job would be told to stop after it should have left",
            "signal_s must be larger than margin_s",
        )
    if asked.signal_s + _EARLY_S >= total:
        return warn(
            f"[slurm] signal_s = {asked.signal_s} in a job of {total} s: it may be told to stop as it starts",
            "ask for more time, or a smaller signal_s",
        )
    config = subject.slurm.config if _no_answer(subject) == "" else {}
    if not config:
        return ok(f"told {asked.signal_s} s before the end, gone {life.margin_s:.0f} s before it")
    kill = whole(config.get("KillWait", "")) or 0
    words = f"told {asked.signal_s} s before the end, gone {life.margin_s:.0f} s before it; KillWait {kill} s"
    preempts = config.get("PreemptType", "preempt/none") not in ("preempt/none", "(null)", "")
    if preempts and "preempt_send_user_signal" not in config.get("SlurmctldParameters", ""):
        grace = next((r.get("GraceTime", "0") for r in subject.slurm.chosen(asked.partition)), "0")
        return warn(
            f"{words}. Jobs may be preempted without --signal, with GraceTime {grace} s",
            "set [life] checkpoint_s: what came after the last checkpoint is lost",
        )
    if kill < 10:
        return warn(f"{words}: a job that misses its signal is killed at once", "set [life] checkpoint_s")
    return ok(words)


def _no_answer(subject: Subject) -> str:
    """Why nothing can be asked of Slurm; '' if it answers."""
    if find("scontrol", subject.environment) is None:
        return _NO_SLURM
    return "" if subject.slurm.config else _SILENT


CHECKS = (
    Check("slurm-tools", GROUP, "submitting, chaining and requeueing all go through these commands", tools),
    Check("profile", GROUP, "what is known about the cluster saves a wait in vain", profile, quick=False),
    Check("slurm-partition", GROUP, "a job for a wrong partition is refused, or waits forever", partition, quick=False),
    Check("slurm-limits", GROUP, "a job that asks for too much is refused, or pends forever", limits, quick=False),
    Check(
        "slurm-accepts", GROUP, "account, QOS and limits are only judged when a job is submitted", accepted, quick=False
    ),
    Check("slurm-requeue", GROUP, "a job that ends with 75 goes on by being requeued", requeue),
    Check(
        "slurm-signal",
        GROUP,
        "the signal before the walltime is what saves the work since the last checkpoint",
        signals,
    ),
)
