"""What is looked at: the site's files, what it asks of Slurm, and where this process runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.images import SHA256_VARIABLE
from fedhpc.agreement.run_folder import run_place
from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.life.settings import LifeSettings
from fedhpc.app.rundir import FEDERATION_FILE
from fedhpc.config import read_section
from fedhpc.doctor.commands import find
from fedhpc.doctor.inside import Container, container_of
from fedhpc.doctor.libmpi import Library, library_of
from fedhpc.doctor.route import Route, way
from fedhpc.doctor.slurm_facts import SlurmFacts
from fedhpc.errors import ConfigError
from fedhpc.slurm.profile import Profile, read_profile
from fedhpc.slurm.queue import named_cluster
from fedhpc.slurm.settings import SlurmSettings, overlay
from fedhpc.train.linear.without_torch import trains_with_numpy
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings

Place = Literal["laptop", "login", "job", "step"]
PLACES = {
    "laptop": "a machine without Slurm",
    "login": "a login node",
    "job": "a job's batch script",
    "step": "a step of a job",
}


@dataclass(frozen=True)
class Subject:
    """One site on one machine. Without files only the machine is looked at."""

    environment: Mapping[str, str]
    quick: bool = False
    site: SiteFile | None = None
    agreement: Agreement | None = None
    run: Path | None = None
    """RUN, which need not be there yet."""
    submits: bool = False
    """Whether [slurm] or a profile is given: else `asked` holds mere defaults."""
    asked: SlurmSettings = field(default_factory=SlurmSettings)
    profile: Profile | None = None
    life: LifeSettings = field(default_factory=LifeSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    root: Path = Path("/")
    """Below it lie the files of the machine."""

    @cached_property
    def container(self) -> Container | None:
        """The container that this process is in."""
        return container_of(self.environment, self.root)

    @cached_property
    def place(self) -> Place:
        """Where this process runs. A batch script has SLURM_PROCID too, but no step."""
        if "SLURM_JOB_ID" in self.environment:
            return "step" if self.environment.get("SLURM_STEP_ID", "").isdigit() else "job"
        return "login" if find("sbatch", self.environment) else "laptop"

    @property
    def in_job(self) -> bool:
        """Whether this is a compute node, as far as one can tell."""
        return self.place in ("job", "step")

    @property
    def ranks_in_image(self) -> bool:
        """Whether the ranks run in an image, and this process does not."""
        said = self.in_job and SHA256_VARIABLE in self.environment
        return bool(self.asked.inside.image) and self.container is None and not said

    @property
    def stays_outside(self) -> bool:
        """Whether this job's script says that it runs outside of images, whatever the site file says by now."""
        return self.in_job and self.environment.get(SHA256_VARIABLE) == ""

    @cached_property
    def slurm(self) -> SlurmFacts:
        """What Slurm says, each question asked once. Raises ConfigError where no single cluster is named."""
        cluster = "" if self.in_job else self.asked.cluster or named_cluster(self.environment)
        return SlurmFacts(self.environment, 3.0 if self.quick else 20.0, cluster)

    @cached_property
    def library(self) -> Library:
        """What mpi4py loads."""
        return library_of(self.environment, 6.0 if self.quick else 60.0)

    @cached_property
    def route(self) -> Route | str:
        """How far the way to the relay works, or why it is not tried. Raises ConfigError, PolicyError."""
        return way(self.site, self.agreement, quick=self.quick)

    @property
    def directory(self) -> Path | None:
        """RUN/SITE, or the directory that the site file names."""
        if self.site is None:
            return None
        if self.run is None and self.site.site.directory is None:
            return None
        return self.site.run_directory(self.run or Path())

    @property
    def tasks(self) -> int:
        """How many ranks this site would have in a job."""
        return self.asked.nodes * self.asked.tasks_per_node

    @property
    def ranks_of_step(self) -> int:
        """How many tasks this step has."""
        count = self.environment.get("SLURM_STEP_NUM_TASKS", "1")
        return int(count) if count.isdigit() else 1

    @property
    def trains_without_torch(self) -> bool:
        """Whether the site's ranks train with NumPy alone. Raises ConfigError for a backend that cannot."""
        if self.agreement is None or "name" not in self.agreement.task:
            return self.compute.backend == "numpy"
        task = read_section(TaskSettings, self.agreement.task, "task")
        return trains_with_numpy(task, read_section(TrainSettings, self.agreement.train, "train"), self.compute)

    @property
    def wants_gpus(self) -> bool:
        """Whether the site trains on GPUs, by its files."""
        return self.compute.device == "cuda" or (self.compute.device == "auto" and self.asked.gpus_per_node > 0)


def open_subject(
    site_path: Path | None,
    environment: Mapping[str, str],
    *,
    federation: Path | None = None,
    profile: str = "",
    out: Path | None = None,
    quick: bool = False,
) -> Subject:
    """Read the files; federation.toml is looked for beside the site file and above. Raises ConfigError, PolicyError."""
    site = agreement = None
    life, compute = LifeSettings(), ComputeSettings()
    if site_path is not None:
        site = SiteFile.open(site_path)
        life = read_section(LifeSettings, site.life, "life")
        compute = read_section(ComputeSettings, site.compute, "compute")
        if federation is None:
            places = (site.base / FEDERATION_FILE, site.base.absolute().parent / FEDERATION_FILE)
            federation = next((path for path in places if path.is_file()), None)
    elif federation is not None or out is not None:
        raise ConfigError("--federation and --out need a SITE.TOML", "give the site file too")
    if federation is not None:
        agreement = Agreement.open(federation)
        assert site is not None
        agreement.number_of(site.site.name)
        out = run_place(federation, agreement, out)
    given = {} if site is None else dict(site.slurm)
    given |= {"profile": profile} if profile else {}
    named = given.get("profile", "generic")
    known = read_profile(named if isinstance(named, str) else str(named))
    asked = overlay(known.slurm, given)
    return Subject(environment, quick, site, agreement, out, bool(given), asked, known, life, compute)
