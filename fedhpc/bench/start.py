"""Starts the processes of a benchmark, or takes those of a launcher, and reads the JSON that the first one prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from fedhpc.bench.given_ranks import given_ranks, require_alone, run_as_rank
from fedhpc.errors import InternalError
from fedhpc.mpi.launch import launcher_command, launcher_environment
from fedhpc.mpi.own_ranks import run_ranks


def measure_ranks(
    module: str, ranks: int, case: dict[str, Any], more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The result of `module` for `case`, run by `ranks` ranks on this machine, with `more` in their environment.

    Where a launcher started several of this process, those are the ranks, and `more` is theirs already. Only rank 0
    returns. Raises RanksFailedError, ConfigError for another number of ranks.
    """
    if given_ranks() > 1:
        output, where = run_as_rank(module, ranks, case)
        return _result_in(module, output) | where
    environment, note = environment_here()
    environment.update(more or {})
    print(f"starting {ranks} ranks; {note}", file=sys.stderr)
    words = [*launcher_command(ranks), sys.executable, "-m", "mpi4py", "-m", module, json.dumps(case)]
    return _result_of(module, words, environment)


def environment_here() -> tuple[dict[str, str], str]:
    """`launcher_environment` for ranks that stay on this machine: by Slurm's variables mpirun finds a job's others.

    Those of PMI are of the rank of `srun --pty` that this may be.
    """
    environment, note = launcher_environment()
    kept = {name: value for name, value in environment.items() if not name.startswith(("SLURM_", "PMI_", "PMIX_"))}
    return kept | {name: value for name, value in environment.items() if name.startswith("PMIX_MCA_")}, note


def measure_alone(module: str, case: dict[str, Any]) -> dict[str, Any]:
    """The result of `module` for `case`, run by one process without MPI. Raises RanksFailedError, ConfigError."""
    require_alone()
    environment, _ = launcher_environment()
    return _result_of(module, [sys.executable, "-m", module, json.dumps(case)], environment)


def _result_of(module: str, words: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    (output,) = run_ranks([words], environment, keep_output=True)
    return _result_in(module, output)


def _result_in(module: str, output: str) -> dict[str, Any]:
    """The last JSON object in what the ranks of `module` printed."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            result: dict[str, Any] = json.loads(line)
            return result
    raise InternalError(f"the ranks of {module} printed no result")
