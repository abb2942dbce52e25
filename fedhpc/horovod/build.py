"""How Horovod 0.28.1 is built: its newest release is of 2023 and needs help with the torch and Python of today.

- It asks for C++14, and torch's headers refuse that. Its build puts `-std=c++14` into each command, and of two the last
  one wins: a wrapper around the compiler adds `-std=c++17`.
- CMake finds the MPI that comes first on its way, which is often another one. It is given the compiler wrapper of the
  library that mpi4py loads, after a small program has proved that it is that library's.
- Libraries are found beside the wheel wherever it is installed ($ORIGIN), and not where they lay when it was built.
- Its own gloo is left out: a site's ranks are MPI's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhpc.errors import ConfigError, InternalError
from fedhpc.horovod.target import FLAGS, Mpi

VERSION = "0.28.1"
SOURCE_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
# Newer ones than these leave out what its setup.py uses.
TOOLS = ("cmake==3.31.6", "setuptools==80.10.2", "wheel==0.45.1")
NEEDS = ("cffi>=1.4", "cloudpickle", "packaging", "psutil", "pyyaml")
"""What Horovod imports, by its own metadata."""

SETTINGS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_GLOO": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}
COMPILER = """#!/bin/sh
exec {compiler} "$@" -std=c++17 -g0 -isystem {headers}
"""
TOOLCHAIN = """set(MPI_CXX_COMPILER "{mpicxx}" CACHE FILEPATH "" FORCE)
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN/../../torch/lib:$ORIGIN/../../../..")
"""
PROBE = """#include <mpi.h>
#include <stdio.h>
int main() {
    char words[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(words, &length);
    return fputs(words, stdout) < 0;
}
"""
RECIPE = repr((VERSION, SOURCE_SHA256, TOOLS, sorted(SETTINGS.items()), COMPILER, TOOLCHAIN))
"""The recipe, for the key: a wheel that another one built is not taken."""


def build_wheel(mpi: Mpi, compiler: Path, flags: str, work: Path, out: Path, jobs: int, log: Path) -> None:
    """Put the wheel and those that it needs into `out`; takes minutes. `work`: an empty directory.

    Raises ConfigError if a tool is missing or the build fails, InternalError if what came out is not what was meant.
    """
    headers = python_headers()
    mpicxx = mpi_compiler(mpi, work)
    for name in ("make", "readelf"):
        if shutil.which(name) is None:
            raise ConfigError(f"`{name}` is not on PATH", "the build needs make and binutils")
    tools = work / "tools"
    pip = [sys.executable, "-P", "-m", "pip"]
    _run([*pip, "install", "--quiet", "--target", str(tools), *TOOLS, *NEEDS], dict(os.environ), log)
    wrapper = work / "compiler"
    wrapper.write_text(COMPILER.format(compiler=_quoted(compiler), headers=_quoted(headers)))
    wrapper.chmod(0o700)
    toolchain = work / "toolchain.cmake"
    toolchain.write_text(TOOLCHAIN.format(mpicxx=mpicxx))
    wanted = work / "wanted.txt"
    wanted.write_text(f"horovod=={VERSION} --hash=sha256:{SOURCE_SHA256}\n")
    environment = build_environment(os.environ, tools, wrapper, toolchain, flags, jobs)
    words = ["--no-build-isolation", "--no-deps", "--no-binary", "horovod", "--no-cache-dir", "--wheel-dir", str(out)]
    _run([*pip, "wheel", "--verbose", *words, "--require-hashes", "-r", str(wanted)], environment, log)
    check_wheel(out, work)
    _run([*pip, "wheel", "--quiet", "--wheel-dir", str(out), *NEEDS], dict(os.environ), log)


def build_environment(
    base: Mapping[str, str], tools: Path, wrapper: Path, toolchain: Path, flags: str, jobs: int
) -> dict[str, str]:
    """The environment of the build, from that of the user."""
    paths = [str(tools), base.get("PYTHONPATH", "")]
    return {
        **base,
        **SETTINGS,
        FLAGS: flags,
        "CXX": str(wrapper),
        "CMAKE_TOOLCHAIN_FILE": str(toolchain),
        "HOROVOD_CMAKE": str(tools / "bin" / "cmake"),
        "MAKEFLAGS": f"-j{jobs}",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def python_headers() -> Path:
    """The directory of Python.h. Raises ConfigError without it."""
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        raise ConfigError(
            f"{folder} has no Python.h", "install this Python's headers (python3-dev), or load a Python that has them"
        )
    return folder


def mpi_compiler(mpi: Mpi, work: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The mpicxx whose programs run with the library that mpi4py loads: MPICXX, else beside the library, else on PATH.

    Raises ConfigError if there is none: a Horovod of another MPI would start in a world of its own.
    """
    source = work / "probe.cc"
    source.write_text(PROBE)
    asked = environment.get("MPICXX", "")
    beside = [folder / "bin" / "mpicxx" for folder in list(mpi.path.parents)[1:3]]
    found = shutil.which("mpicxx", path=environment.get("PATH", os.defpath))
    candidates = [Path(asked)] if asked else [path for path in (*beside, Path(found or "")) if path.is_file()]
    said = [f"{path} builds for {_speaks(path, source, environment)}" for path in candidates]
    for path, words in zip(candidates, said, strict=True):
        if words == f"{path} builds for {_flat(mpi.version)}":
            return path
    tried = "; ".join(words[:200] for words in said) or "no mpicxx is beside it or on PATH"
    raise ConfigError(
        f"mpi4py loads {mpi.name} ({mpi.path}), and no compiler for it was found: {tried}",
        "load the module that this MPI comes from, with its compilers, or set MPICXX to its mpicxx",
    )


def check_wheel(out: Path, work: Path) -> None:
    """One wheel, with torch's part of it, which looks for libraries beside itself only. Raises InternalError."""
    wheels = list(out.glob(f"horovod-{VERSION}-*.whl"))
    if len(wheels) != 1:
        raise InternalError(f"the build left {len(wheels)} wheels of Horovod {VERSION}")
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [name for name in archive.namelist() if name.startswith("horovod/torch/mpi_lib_v2.")]
        if len(names) != 1:
            raise InternalError("the wheel has no part for torch")
        library = Path(archive.extract(names[0], work))
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    for folder in search_path(dynamic):
        if not folder.startswith("$ORIGIN/"):
            raise InternalError(f"the wheel looks for libraries in {folder}, which is not beside it")


def search_path(dynamic: str) -> list[str]:
    """The directories of RPATH and RUNPATH in what `readelf -d` prints."""
    lines = [line for line in dynamic.splitlines() if "(RPATH)" in line or "(RUNPATH)" in line]
    return [folder for line in lines for folder in line.partition("[")[2].rstrip("] ").split(":") if folder]


def _speaks(compiler: Path, source: Path, environment: Mapping[str, str]) -> str:
    """What the MPI library says of itself that a program of this compiler runs with; or what went wrong."""
    program = source.with_name("probe-" + hashlib.sha256(str(compiler).encode()).hexdigest()[:8])
    try:
        made = subprocess.run(
            [compiler, source, "-o", program], env=dict(environment), capture_output=True, text=True, check=False
        )
        if made.returncode:
            return f"nothing: {_flat(made.stderr)}"
        ran = subprocess.run([program], env=dict(environment), capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nothing: {error}"
    return _flat(ran.stdout) if ran.returncode == 0 else f"nothing: {_flat(ran.stderr)}"


def _flat(text: str) -> str:
    """On one line."""
    return " ".join(text.strip("\0\n ").split())


def _quoted(path: Path) -> str:
    """For a shell, whatever stands in the path."""
    return "'" + str(path).replace("'", "'\\''") + "'"


def _run(words: Sequence[str], environment: dict[str, str], log: Path) -> None:
    """Run to the end, its output into `log`. Raises ConfigError with the last lines."""
    with log.open("ab") as file:
        done = subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = ([line for line in lines if "error" in line.lower()] or lines or ["it said nothing"])[-1]
        raise ConfigError(
            f"building Horovod {VERSION} failed at `{' '.join(words[1:4])}`: {last.strip()}",
            f"all that it said is in {log}",
        )
