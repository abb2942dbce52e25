"""A `fedhpc bench` command line that a job is to run: what is wrong with it is said before the job waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhpc.cli.bench import bench, ranks_of_sites
from fedhpc.errors import ConfigError


def ranks_of_command(words: Sequence[str]) -> int:
    """How many ranks it has; 0 where it starts its own processes. Raises ConfigError or click's UsageError."""
    name, *options = words
    if name not in bench.commands:
        raise ConfigError(f"fedhpc bench has no '{name}'", f"one of {', '.join(bench.commands)}")
    given = bench.commands[name].make_context(f"fedhpc bench {name}", options).params
    if given["lines"] is not None:
        raise ConfigError("--lines is the job's own", "it keeps them in its folder, beside its log")
    return _ranks(name, given)


def _ranks(name: str, given: dict[str, Any]) -> int:
    if name == "latency":
        return int(given["sites"])
    if name in ("sum", "round") and given.get("exchange", "mpi") == "mpi":
        named = given.get("ranks")
        return sum(ranks_of_sites(named)) if named else int(given["sites"] * given["ranks_per_site"])
    return 0


def suite_folder(given: Path | None) -> Path:
    """The ReFrame suite: as given, or of the source tree that this fedhpc runs from. Raises ConfigError."""
    folder = Path(__file__).parents[2] / "benchmarks" / "partition" if given is None else given.absolute()
    if not (folder / "checks.py").is_file():
        raise ConfigError(
            f"there is no ReFrame suite in {folder}", "--suite FOLDER names benchmarks/partition of a source tree"
        )
    return folder
