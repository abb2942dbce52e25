"""Profiles: what is known of a cluster, in jobs/profiles. A site file overrides every value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedhpc.config import parse_toml, read_bytes, read_section, refuse_unknown
from fedhpc.errors import ConfigError
from fedhpc.slurm.settings import SlurmSettings, walltime_s


@dataclass(frozen=True)
class ProfileSection:
    """[profile]"""

    title: str
    """The machine and who runs it."""
    outbound: Literal["yes", "no", "unknown"] = "unknown"
    """Whether compute nodes can dial out; "no" needs the spool."""


@dataclass(frozen=True)
class Partition:
    """One [partitions.NAME] of a profile."""

    time: str = ""
    """The longest walltime; empty: not known."""
    gpus_per_node: int = 0

    def __post_init__(self) -> None:
        if self.time:
            walltime_s(self.time)


@dataclass(frozen=True)
class Profile:
    """What is known of one cluster."""

    name: str
    about: ProfileSection
    slurm: Mapping[str, Any]
    """Defaults of [slurm], some of its keys."""
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    """Those that are known; none means that any is taken."""

    def check(self, settings: SlurmSettings, where: str = "slurm") -> None:
        """Refuse a partition that the cluster does not have, or does not let run so long. ConfigError."""
        name = settings.partition
        if not name or not self.partitions or settings.any_partition:
            return
        unknown = [part for part in name.split(",") if part not in self.partitions]
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(self.partitions), n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(
                f"{where}.partition = '{unknown[0]}' is not known on {self.name}",
                f"{hint}known: {', '.join(self.partitions)}; any_partition = true takes others",
            )
        longest = {part: self.partitions[part].time for part in name.split(",") if self.partitions[part].time}
        for part, time in longest.items():
            if walltime_s(settings.time) > walltime_s(time):
                raise ConfigError(
                    f"{where}.time = {settings.time} is longer than partition '{part}' of {self.name} allows, {time}",
                    "any_partition = true does not ask the profile",
                )


def jobs_folder() -> Path:
    """jobs/ with profiles and templates, as it is installed."""
    return Path(__file__).parents[1] / "jobs"


def profile_names() -> list[str]:
    """All profiles, `generic` first."""
    names = sorted(path.stem for path in (jobs_folder() / "profiles").glob("*.toml"))
    return sorted(names, key=lambda name: name != "generic")


def read_profile(name: str) -> Profile:
    """The profile `name`. Raises ConfigError with all names for an unknown one."""
    names = profile_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown profile {name!r}", f"{hint}profiles: {', '.join(names)}")
    path = jobs_folder() / "profiles" / f"{name}.toml"
    table = parse_toml(read_bytes(path), path.name)
    refuse_unknown(table, ("profile", "slurm", "partitions"), path.name)
    partitions = {
        part: read_section(Partition, values, f"partitions.{part}")
        for part, values in table.get("partitions", {}).items()
    }
    return Profile(name, read_section(ProfileSection, table["profile"], "profile"), table.get("slurm", {}), partitions)
