"""From a site file to everything a submission needs, and the refusals before anything is submitted."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.run_folder import FEDERATION_FILE, make_run_folder, run_place
from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.life.job_life import percentile_95
from fedhpc.app.life.settings import LifeSettings
from fedhpc.app.telemetry import METRICS_FILE, number, read_metrics, table
from fedhpc.config import read_section
from fedhpc.errors import ConfigError, StorageError
from fedhpc.federation.life import Stage
from fedhpc.files import private_folder
from fedhpc.ledger.home import data_directory
from fedhpc.slurm.profile import Profile, read_profile
from fedhpc.slurm.settings import SlurmSettings, exchange_settings, overlay, walltime_s

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # as a Path has it, which keeps one / of two
SCALE = 2.0  # how much longer than the slowest rounds so far a job must be


@dataclass(frozen=True)
class Plan:
    """What is submitted for one site. All paths are absolute."""

    federation_path: Path
    run: Path
    directory: Path
    """RUN/SITE: ledger, checkpoints, metrics, and jobs/ below it."""
    agreement: Agreement
    site_file: SiteFile
    life: LifeSettings
    settings: SlurmSettings
    exchange: SlurmSettings
    """Of the jobs of `detached` that only exchange."""
    profile: Profile

    @property
    def jobs(self) -> Path:
        """Where records, scripts and logs of this site's jobs are."""
        return self.directory / "jobs"

    @property
    def site(self) -> str:
        """The site's name."""
        return self.site_file.site.name

    def of(self, stage: Stage) -> SlurmSettings:
        """What a job of that stage asks the queue for."""
        return self.exchange if stage == "exchange" else self.settings


def find_federation(site_path: Path, given: Path | None) -> Path:
    """federation.toml: as given, beside the site file, or one folder up. ConfigError if there is none."""
    if given is not None:
        return given
    for folder in (site_path.parent, site_path.parent.parent):
        if (folder / FEDERATION_FILE).is_file():
            return folder / FEDERATION_FILE
    raise ConfigError(f"no {FEDERATION_FILE} beside {site_path} or one folder up", "name it with --federation")


def make_plan(
    site: Path, *, profile: str | None, federation: Path | None, out: Path | None, container: Path | None = None
) -> Plan:
    """Read everything a submission needs; `container`: an image in place of the site file's.

    Raises ConfigError or StorageError.
    """
    site_file = SiteFile.open(Path(os.path.abspath(site)))
    federation_path = Path(os.path.abspath(find_federation(site_file.file, federation)))
    agreement = Agreement.open(federation_path)
    agreement.number_of(site_file.site.name)
    given = dict(site_file.slurm)
    if profile is not None:
        given["profile"] = profile
    if container is not None:
        if _ADDRESS.match(str(container)):
            raise ConfigError(
                f"--container {container} is an address, and not a file",
                "pull or build it first: only a file has a SHA-256 that all sites can agree on",
            )
        table = given.get("container", {})
        given["container"] = {**(table if isinstance(table, dict) else {}), "image": os.path.abspath(container)}
    named = given.get("profile", "generic")
    known = read_profile(named if isinstance(named, str) else str(named))
    settings = overlay(known.slurm, given)
    run = Path(os.path.abspath(run_place(federation_path, agreement, out)))
    return Plan(
        federation_path=federation_path,
        run=run,
        directory=Path(os.path.abspath(site_file.run_directory(run))),
        agreement=agreement,
        site_file=site_file,
        life=read_section(LifeSettings, site_file.life, "life"),
        settings=settings,
        exchange=exchange_settings(settings),
        profile=known,
    )


def check(plan: Plan, *, one_site: bool = True) -> list[str]:
    """Refuse what cannot work, before the queue is asked; what may go wrong comes back as notes for people.

    `one_site`: the job is one site's, and no rehearsal or relay. Raises ConfigError, or StorageError for a run
    directory that cannot be written.
    """
    detached = plan.life.kind == "detached"
    plan.profile.check(plan.settings)
    if detached:
        plan.profile.check(plan.exchange, "slurm.exchange")
    kind = str(plan.site_file.exchange.kind)
    if one_site and kind == "mpi" and len(plan.agreement.roster) > 1:
        raise ConfigError(
            f'{plan.site_file.file} has [exchange] kind = "mpi", which is all sites in one job',
            "a site in a job of its own needs https or spool; `--shape rehearsal` submits all sites in one",
        )
    if kind == "spool":
        _check_spool(plan)
    _check_walltime(plan)
    placed = plan.site_file.site.directory is not None
    make_run_folder(plan.directory, plan.federation_path, placed=placed)
    _make_writable(plan.jobs)
    notes = _on_ledger(plan)
    if kind == "https" and plan.profile.about.outbound == "no":
        notes.append(
            f"compute nodes of {plan.profile.name} are not known to reach the outside: "
            'consider [exchange] kind = "spool"'
        )
    if detached and plan.settings.gpus_per_node and plan.exchange.partition == plan.settings.partition:
        notes.append(
            "exchange jobs ask for no GPU in the partition of the training jobs: name another in [slurm.exchange]"
        )
    return notes + _on_what_is_asked(plan)


def _on_what_is_asked(plan: Plan) -> list[str]:
    """Questions about the request itself: nobody to book it on, or GPUs that stand idle."""
    notes = []
    if not plan.settings.account and plan.profile.name != "generic":
        notes.append(
            f"slurm.account is empty: where {plan.profile.name} books time by project, sbatch refuses the job or "
            "books it on your default project"
        )
    if plan.settings.gpus_per_node and plan.agreement.task.get("name") == "logistic":
        notes.append(
            f"the task logistic keeps no GPU busy, and the job asks for {plan.settings.gpus_per_node} on each node: "
            "consider gpus_per_node = 0 and a partition without GPUs"
        )
    return notes


def _on_ledger(plan: Plan) -> list[str]:
    """Charliecloud makes no folder in an image, so the ledger's home must be one that the image has."""
    section = plan.settings.inside
    if section.runtime != "charliecloud" or not section.image or plan.site_file.ledger.path is not None:
        return []
    home = data_directory()
    if home.is_relative_to("/tmp"):  # noqa: S108 - shared with the host
        return []
    image = plan.site_file.path(Path(section.image))
    if (image / home.relative_to("/")).is_dir():
        return []
    return [
        f"the ledger is below {home}, which the image must have, since charliecloud cannot make it there: "
        "[ledger] path names a folder below one that the image has, such as /scratch"
    ]


def _check_spool(plan: Plan) -> None:
    spool = getattr(plan.site_file.exchange, "spool", None)
    if spool is None or not plan.site_file.path(spool).is_dir():
        raise ConfigError(
            f"the spool directory {spool and plan.site_file.path(spool)} does not exist",
            "make it where both the compute nodes and the carrier see it",
        )


def _check_walltime(plan: Plan) -> None:
    """A job too short for a single round would be submitted again and again."""
    seconds = slow_round_s(plan.directory, plan.life.kind == "detached")
    if seconds is None:
        return
    slow, checkpoint = seconds
    whole = walltime_s(plan.settings.time)
    if SCALE * slow + checkpoint > whole:
        raise ConfigError(
            f"slurm.time = {plan.settings.time} ({whole} s) is too short for one round: rounds so far took up to "
            f"{slow:.0f} s, a checkpoint {checkpoint:.0f} s",
            f"at least {math.ceil(SCALE * slow + checkpoint)} s: twice the slow rounds and a checkpoint",
        )


def slow_round_s(directory: Path, training_only: bool) -> tuple[float, float] | None:
    """(95th percentile of a round, of a checkpoint) in seconds from the site's metrics, None without rounds.

    Of a round the whole, or with `training_only` what a job does that does not exchange.
    """
    path = directory / METRICS_FILE
    if not path.exists():
        return None
    records = [table(r, "seconds") for r in read_metrics(path) if r.get("final") is not True]
    parts = ("train", "evaluate") if training_only else ("total",)
    rounds = [sum(number(r.get(part)) or 0.0 for part in parts) for r in records]
    if not rounds:
        return None
    return percentile_95(rounds), percentile_95([number(r.get("checkpoint")) or 0.0 for r in records])


def _make_writable(jobs: Path) -> None:
    private_folder(jobs)
    try:
        probe = jobs / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise StorageError(f"cannot write in {jobs}: {error.strerror}", "check space and permissions") from None
