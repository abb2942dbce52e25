"""Whether this process is in a container, and in which one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedhpc.app.logs import printable

_WHOLE_MAP = ["0", "0", "4294967295"]  # of /proc/self/uid_map outside user namespaces


@dataclass(frozen=True)
class Container:
    """A container, by what its runtime leaves in it."""

    runtime: str
    image: str = ""

    @property
    def words(self) -> str:
        """For people."""
        return f"inside {self.runtime}{f', {printable(self.image)}' if self.image else ''}"


def container_of(environment: Mapping[str, str], root: Path) -> Container | None:
    """The container of a process with this environment and root directory; None in none that is known.

    A variable alone says little: a job that was submitted from within a container brings it along.
    """
    if (root / ".singularity.d").is_dir():
        image = environment.get("APPTAINER_CONTAINER", "")
        return (
            Container("Apptainer", image)
            if image
            else Container("Singularity", environment.get("SINGULARITY_CONTAINER", ""))
        )
    if "CH_RUNNING" in environment:
        return Container("Charliecloud")
    if (root / "run" / ".containerenv").exists():
        return Container("Podman")
    return None


def in_user_namespace(root: Path) -> bool:
    """Whether this process has a user namespace of its own."""
    return first_line(root / "proc" / "self" / "uid_map").split() not in ([], _WHOLE_MAP)


def first_line(path: Path) -> str:
    """The first line of a small file, '' if there is none."""
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError:
        return ""
