"""What of Horovod is installed here, asked in a process of its own: `python -m fedhpc.horovod.installed`.

That prints one JSON object: `version`, whether MPI, gloo and GPUs are built in, and the MPI libraries in a process that
has loaded mpi4py first and Horovod after it. Nothing starts MPI. Run it apart: a wrong library may crash it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from fedhpc.errors import ConfigError
from fedhpc.mpi.library import libraries, load_library

HOW = "build it: `make horovod`, or without a checkout `python -m fedhpc.horovod` (docs/horovod.md)"

HOW_FOR_GPUS = "build it with HOROVOD_GPU_OPERATIONS=NCCL in the environment (docs/horovod.md), or use backend = 'ddp'"


@dataclass(frozen=True)
class Installed:
    """What a process that loads Horovod sees. `trouble` instead, if it cannot."""

    version: str = ""
    mpi: bool = False
    gloo: bool = False
    gpus: bool = False
    libraries: tuple[str, ...] = field(default=())
    trouble: str = ""


def look(environment: Mapping[str, str], limit_s: float) -> Installed | None:
    """None if Horovod is not installed."""
    try:
        importlib.metadata.version("horovod")
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "fedhpc.horovod.installed"],
            env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=limit_s,
        )  # fmt: skip
        found = json.loads(answer.stdout.strip().splitlines()[-1])
        return Installed(**{**found, "libraries": tuple(found["libraries"])})
    except subprocess.TimeoutExpired:
        return Installed(trouble=f"importing Horovod took more than {limit_s:.0f} s")
    except (ValueError, KeyError, TypeError, IndexError):
        last = (answer.stderr.strip().splitlines() or [f"it ends with exit code {answer.returncode}"])[-1]
        return Installed(trouble=last[:200])


def require_fit(found: Installed | None, *, gpus: bool = False) -> Installed:
    """What is there, if a site can train with it, and on `gpus` if so. Raises ConfigError."""
    if found is None:
        raise ConfigError("Horovod is not installed", HOW)
    if found.trouble:
        raise ConfigError(f"Horovod cannot be imported: {found.trouble}", f"it was built for other libraries; {HOW}")
    if not found.mpi:
        raise ConfigError(f"Horovod {found.version} is built without MPI", HOW)
    if len(found.libraries) > 1:
        raise ConfigError(
            f"Horovod {found.version} brings another MPI library than mpi4py's: {', '.join(found.libraries)}", HOW
        )
    if gpus and not found.gpus:
        raise ConfigError(f"Horovod {found.version} is built for the CPU, and the site trains on GPUs", HOW_FOR_GPUS)
    return found


def _main() -> None:
    load_library()
    hvd = importlib.import_module("horovod.torch")
    with open("/proc/self/maps") as maps:
        loaded = libraries(maps)
    facts = Installed(
        version=importlib.metadata.version("horovod"),
        mpi=bool(hvd.mpi_built()),
        gloo=bool(hvd.gloo_built()),
        gpus=bool(hvd.cuda_built() or hvd.rocm_built()),
        libraries=tuple(loaded),
    )
    sys.stdout.write("\n" + json.dumps(asdict(facts)) + "\n")


if __name__ == "__main__":
    _main()
