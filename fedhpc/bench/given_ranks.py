"""The ranks that srun or mpirun has started `fedhpc bench` in: a measurement over the nodes of a batch job is theirs.

Without them a measurement starts its own, which are all on one machine (start.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shlex
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhpc.bench.record import origin
from fedhpc.errors import ConfigError
from fedhpc.mpi import world as mpi_world

_MPIRUN = "OMPI_COMM_WORLD_SIZE"
# A batch script has SLURM_PROCID and SLURM_NTASKS, too, and is no rank.
_OF_SLURM = "SLURM_STEP_NUM_TASKS"
_KINDS = {"PMIX_RANK": "pmix", "PALS_RANKID": "cray_shasta", "PMI_RANK": "pmi2"}
"""What srun's --mpi sets for each rank."""


def given_ranks(environment: Mapping[str, str] = os.environ, *, typed: bool | None = None) -> int:
    """How many ranks a launcher started, this process among them; 1 where it is alone.

    `typed`: whether standard input is a terminal, absent: as it is. srun gives its tasks one only with --pty, to the
    first: the others are no ranks of what is typed there, and would be waited for for ever.
    """
    typed = sys.stdin is not None and sys.stdin.isatty() if typed is None else typed
    names = (_MPIRUN,) if typed and _OF_SLURM in environment else (_MPIRUN, "PMI_SIZE", _OF_SLURM)
    counts = (environment.get(name, "") for name in names)
    return max(1, next((int(text) for text in counts if text.isdigit()), 1))


def require_alone() -> None:
    """Raise ConfigError where a launcher started several of this process."""
    if (count := given_ranks()) > 1:
        raise ConfigError(
            f"this measurement starts its own processes, and a launcher started it {count} times", "start it once"
        )


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A temporary folder of all ranks.

    Each node has a /tmp of its own, so that of given ranks is in the working directory, or in HOME where an image shows
    that one read-only.
    """
    if given_ranks() == 1:
        with tempfile.TemporaryDirectory(prefix="fedhpc-bench-") as name:
            yield Path(name)
        return
    group = mpi_world.start().group
    if group.rank:
        yield Path(group.broadcast_bytes(None).decode())
        return
    place = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path.home()
    # The other ranks may still close their files.
    with tempfile.TemporaryDirectory(prefix="fedhpc-bench-", dir=place, ignore_cleanup_errors=True) as name:
        group.broadcast_bytes(name.encode())
        yield Path(name)


def run_as_rank(module: str, ranks: int, case: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What rank 0 of `module` prints for rank 0's `case`, and where it ran, as keys of a result; only rank 0 returns.

    Raises ConfigError if the launcher started another number of ranks than `ranks`, or each for itself.
    """
    count = given_ranks()
    if count != ranks:
        raise ConfigError(f"a launcher started {count} ranks, and this measurement has {ranks}", f"start {ranks}")
    group = mpi_world.start().group
    words = group.broadcast_bytes(None if group.rank else json.dumps(case).encode())
    hosts = group.gather_bytes(socket.gethostname().encode())
    output = io.StringIO()
    own, sys.argv = sys.argv, [module, words.decode()]
    with contextlib.redirect_stdout(output):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.argv = own
    if group.rank:
        sys.exit(0)
    return output.getvalue(), {
        "nodes": len(set(hosts)),
        "command": f"{shlex.join(launcher_words(hosts, os.environ))} python -m mpi4py -m {origin().command}",
    }


def launcher_words(hosts: Sequence[bytes], environment: Mapping[str, str]) -> list[str]:
    """What starts ranks on nodes as these were; `hosts`: of each rank."""
    each = set(Counter(hosts).values())
    alike = next(iter(each)) if len(each) == 1 else None
    nodes, ranks = len(set(hosts)), len(hosts)
    if _MPIRUN in environment or _OF_SLURM not in environment:
        return ["mpirun", "-n", str(ranks), *(["--map-by", f"ppr:{alike}:node"] if alike and nodes > 1 else [])]
    kind = environment.get("SLURM_MPI_TYPE") or next((k for name, k in _KINDS.items() if name in environment), "")
    words = ["srun", f"--nodes={nodes}", f"--ntasks={ranks}", *([f"--ntasks-per-node={alike}"] if alike else [])]
    return [*words, *([f"--mpi={kind}"] if kind else [])]
