"""What the site asks of Slurm: [slurm] of its file over the values of a profile. The one place that reads either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedhpc.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """What the checks need to know of it."""

    given: bool = False
    """Whether anything was asked at all."""
    profile: str = ""
    account: str = ""
    partition: str = ""
    qos: str = ""
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    time: str = ""
    memory: str = ""
    constraint: str = ""
    reservation: str = ""
    mpi: str = ""
    launcher: str = "srun"
    container: str = ""
    signal_s: int = 300


def asked_of(section: Mapping[str, Any], profile: str) -> Asked:
    """Raises ConfigError for an unknown profile."""
    name = profile or str(section.get("profile", ""))
    if name:
        raise ConfigError(f"unknown profile '{name}'", "there are none")
    known = {k: v for k, v in section.items() if k in Asked.__dataclass_fields__}
    return Asked(given=bool(section), **known)
