"""What `fedhpc submit --shape bench` measures in its job: a suite over all nodes, or one `fedhpc bench` command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from fedhpc.errors import ConfigError
from fedhpc.slurm.render import launcher, part
from fedhpc.slurm.settings import SlurmSettings

_LINES = '"$measured.jsonl"'


@dataclass(frozen=True)
class Measured:
    """One of the two."""

    command: tuple[str, ...] = ()
    """The words after `fedhpc bench`."""
    ranks: int = 0
    """Of the command; 0: it starts its own processes, on the first node."""
    reads: Path | None = None
    """A file of the host that the command reads."""
    writes: Path | None = None
    """A folder of the host in which the command writes."""
    suite: Path | None = None
    """The folder benchmarks/partition of a source tree."""
    tags: tuple[str, ...] = ("own",)
    """Which checks of the suite: those that have all of them."""


def measured_launch(measured: Measured, settings: SlurmSettings, within: str) -> str:
    """What the script launches; `within`: the words that start Python. Raises ConfigError for another number of tasks.

    ReFrame itself needs Slurm's commands, and stays outside an image.
    """
    if measured.suite is not None:
        tree = shlex.quote(str(measured.suite.parent.parent))
        words = '"$python" -m benchmarks.partition --allocation --out "$measured"'
        tags = "".join(f" --tag {shlex.quote(tag)}" for tag in measured.tags)
        return f"env --chdir={tree} \\\n  {words}{tags}"
    command = f"-m fedhpc bench {shlex.join(measured.command)} --lines {_LINES}"
    if not measured.ranks:
        return f"{within} {command}"
    tasks = settings.nodes * settings.tasks_per_node
    if measured.ranks != tasks:
        raise ConfigError(
            f"`{shlex.join(measured.command)}` has {measured.ranks} ranks, but [slurm] nodes x tasks_per_node is "
            f"{tasks}",
            "change one of them",
        )
    return f"{launcher(settings)} \\\n  {within} -m mpi4py {command}"


def measured_begin(measured: Measured, settings: SlurmSettings, *, contained: bool) -> str:
    """What the suite is told of how this job starts ranks."""
    if measured.suite is None:
        return ""
    lines = [f"export FEDHPC_SUITE_LAUNCHER={settings.launcher}"]
    if settings.mpi and settings.launcher == "srun":
        lines.append(f"export SLURM_MPI_TYPE={shlex.quote(settings.mpi)}")
    if contained:
        lines.append(part("bench_inside"))
    return "\n".join(lines)
