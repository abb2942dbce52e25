"""How much memory of this node a measurement may take: of a job what Slurm gave it, not all that the node has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def number(environment: Mapping[str, str], name: str) -> int:
    """Slurm's number; of several groups of nodes, as in 8(x2), the first; 0 where there is none."""
    text = environment.get(name, "").partition("(")[0].partition(",")[0]
    return int(text) if text.isdigit() else 0


def job_memory_mib(environment: Mapping[str, str]) -> float:
    """MiB that Slurm gave a job of each node; what the node lets it have, where it names none."""
    each = number(environment, "SLURM_MEM_PER_CPU") * number(environment, "SLURM_CPUS_ON_NODE")
    return float(number(environment, "SLURM_MEM_PER_NODE") or each) or node_memory_mib()


def node_memory_mib(groups: str | None = None, root: Path = _CGROUPS, physical: float | None = None) -> float:
    """MiB that the node has, or that the control groups of this process let it have (`groups`: /proc/self/cgroup)."""
    if physical is None:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    if groups is None:
        own = Path("/proc/self/cgroup")
        groups = own.read_text() if own.is_file() else ""
    return min([physical, *_limits(groups, root)])


def _limits(groups: str, root: Path) -> Iterator[float]:
    """Of this process's groups and those above them, version 2 (`0::/path`) and 1 (`n:memory:/path`)."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        place = top / path.lstrip("/")
        for folder in (place, *place.parents):
            if not folder.is_relative_to(top):
                break
            file = folder / name
            text = file.read_text().strip() if file.is_file() else ""
            if text.isdigit():
                yield int(text) / 2**20
