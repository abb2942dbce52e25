"""A `fedhpc bench` command line that a job is to run: what is wrong with it is said before the job waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhpc.bench.sum_request import check_sum
from fedhpc.cli.bench import bench, check_backends, site_counts
from fedhpc.errors import ConfigError
from fedhpc.slurm.measured import Measured


def measured_command(words: Sequence[str]) -> Measured:
    """What a job has to know of it. Raises ConfigError, PolicyError or click's UsageError."""
    name, *options = words
    if name not in bench.commands:
        raise ConfigError(f"fedhpc bench has no '{name}'", f"one of {', '.join(bench.commands)}")
    given = bench.commands[name].make_context(f"fedhpc bench {name}", options).params
    if given["lines"] is not None:
        raise ConfigError("--lines is the job's own", "it keeps them in its folder, beside its log")
    store, folder = (_absolute(given, option) for option in ("store", "folder"))
    return Measured(tuple(words), _ranks(name, given), reads=store, writes=folder)


def _ranks(name: str, given: dict[str, Any]) -> int:
    """How many it has; 0 where it starts its own processes."""
    if name == "masks":
        site_counts(given["sites"])
    if name == "backends":
        check_backends(given["backends"])
    if name == "sum":
        ranks = sum(check_sum(given))
        return ranks if given["exchange"] == "mpi" else 0
    if name == "round":
        return int(given["sites"] * given["ranks_per_site"])
    return int(given["sites"]) if name == "latency" else 0


def _absolute(given: dict[str, Any], option: str) -> Path | None:
    path = given.get(option)
    if path is not None and not Path(path).is_absolute():
        raise ConfigError(
            f"--{option} {path} is relative, and a job does not begin in this folder", "name it from / on"
        )
    return None if path is None else Path(path)


def suite_folder(given: Path | None) -> Path:
    """The ReFrame suite: as given, or of the source tree that this fedhpc runs from. Raises ConfigError."""
    folder = Path(__file__).parents[2] / "benchmarks" / "partition" if given is None else given.absolute()
    if not (folder / "checks.py").is_file():
        raise ConfigError(
            f"there is no ReFrame suite in {folder}", "--suite FOLDER names benchmarks/partition of a source tree"
        )
    return folder
