"""What Slurm says about itself, read leniently: fields come and go with its versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from fedhpc.doctor.commands import Output, call
from fedhpc.slurm.queue import at_cluster

_SETTING = re.compile(r"^(\w[\w./-]*)\s*=\s?(.*)$")
_FIELD = re.compile(r"(\w+)=(\S*)")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_ENDLESS = {"UNLIMITED", "INFINITE"}

Row = dict[str, str]


class SlurmFacts:
    """Answers of Slurm's commands, each asked once; of `cluster`, or of the one of this machine."""

    def __init__(self, environment: Mapping[str, str], limit_s: float, cluster: str = "") -> None:
        self.environment, self.limit_s, self.cluster = environment, limit_s, cluster

    def call(self, command: str, *words: str) -> Output:
        """One of Slurm's commands, asked as `fedhpc submit` would; srun as it is, since it may be within a job."""
        if command == "srun":
            return call([command, *words], self.environment, self.limit_s)
        named, environment = at_cluster(self.cluster, self.environment)
        return call([command, *named, *words], environment, self.limit_s)

    @cached_property
    def answer(self) -> Output:
        """`scontrol show config`."""
        return self.call("scontrol", "show", "config")

    @cached_property
    def config(self) -> dict[str, str]:
        """Its settings by name; empty where Slurm does not answer."""
        return settings(self.answer.out) if self.answer.code == 0 else {}

    @cached_property
    def partitions(self) -> dict[str, Row]:
        """`scontrol show partition` by name; empty where Slurm does not answer."""
        found = self.call("scontrol", "show", "partition", "--oneliner")
        rows = [fields(line) for line in found.out.splitlines()] if found.code == 0 else []
        return {row["PartitionName"]: row for row in rows if "PartitionName" in row}

    @cached_property
    def mpi_types(self) -> list[str]:
        """What `srun --mpi=` takes; empty where it does not answer."""
        found = self.call("srun", "--mpi=list")
        return mpi_types(found.out + "\n" + found.err) if found.code == 0 else []

    def cannot_load(self, mpi_type: str) -> str:
        """Why srun cannot use a type that it lists, '' if it can: a plugin's own library may be missing.

        The plugin is loaded before anything is asked of the controller, so other refusals say nothing about it.
        """
        found = self.call("srun", f"--mpi={mpi_type}", "--test-only", "--ntasks=1", "true")
        return found.words.removeprefix("srun: error: ").strip() if "Invalid MPI type" in found.err else ""

    def chosen(self, names: str) -> list[Row]:
        """The partitions of a comma list, or the default one; those that are not there are left out."""
        if names:
            return [self.partitions[name] for name in names.split(",") if name in self.partitions]
        return [row for row in self.partitions.values() if row.get("Default") == "YES"]


def settings(text: str) -> dict[str, str]:
    """`Name = value` lines."""
    rows = (_SETTING.match(line.strip()) for line in text.splitlines())
    return {row[1]: row[2].strip() for row in rows if row}


def fields(line: str) -> dict[str, str]:
    """`Name=value Name=value` on one line."""
    return dict(_FIELD.findall(line))


def mpi_types(text: str) -> list[str]:
    """The names in the answer to `srun --mpi=list`, of which Slurm has printed several forms."""
    found: list[str] = []
    for line in text.splitlines():
        bare = line.replace("srun:", "").strip()
        listed = re.match(r"specific \w+ plugin versions available:\s*(.*)", bare)
        names = listed[1].split(",") if listed else [bare]
        found += [n.strip() for n in names if re.fullmatch(r"[a-z][a-z0-9_]*", n.strip())]
    return found


def seconds_of(text: str) -> float | None:
    """Slurm's `D-HH:MM:SS`, `D-HH`, `HH:MM:SS`, `MM:SS` or `MM` in seconds; infinite; None for something else."""
    if text.strip().upper() in _ENDLESS:
        return float("inf")
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    days, one, two, three = (None if part is None else int(part) for part in match.groups())
    assert one is not None
    if days is not None:  # after days come hours
        return days * 86400.0 + one * 3600 + (two or 0) * 60 + (three or 0)
    if three is not None:
        return one * 3600.0 + (two or 0) * 60 + three
    return one * 60.0 + (two or 0)


def major_minor(text: str) -> tuple[int, int] | None:
    """(23, 11) of `slurm 23.11.4`."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def whole(text: str) -> int | None:
    """The number at the start of `30 sec`; None for UNLIMITED and the like."""
    match = re.match(r"\d+", text.strip())
    return int(match[0]) if match else None
