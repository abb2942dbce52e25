"""Which MPI library mpi4py loads here, told without MPI_Init, which crashes on many login nodes.

`python -m fedhpc.mpi.library` prints one JSON object: `version` (the library's own words) and `loaded` (the paths of
every libmpi in this process, with HDF5 in it, since a parallel HDF5 brings an MPI of its own). Run it as a process of
its own: a wrong library may crash it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

SONAMES = {"libmpi.so.40": "openmpi", "libmpi.so.12": "mpich"}
"""The file that programs are linked with -> the family that shares its ABI."""
_LIBRARY = re.compile(r"libmpi(?:_cray|_gnu[\w.]*|_intel|ch)?\.so[\d.]*")


def libraries(maps: Iterable[str]) -> list[str]:
    """The distinct MPI libraries among the lines of /proc/self/maps, in order."""
    found: list[str] = []
    for line in maps:
        path = line.rstrip("\n").partition("/")[2]
        if path and _LIBRARY.fullmatch(os.path.basename(path)) and f"/{path}" not in found:
            found.append(f"/{path}")
    return found


def libraries_in(folders: Iterable[Path]) -> dict[Path, str]:
    """The libmpi files in these folders, in their order, with their ABI's family."""
    return {folder / name: kind for folder in folders for name, kind in SONAMES.items() if (folder / name).exists()}


def family(version: str) -> str:
    """The family that shares an ABI: "openmpi" (libmpi.so.40), "mpich" (libmpi.so.12), or "" for an unknown one."""
    if "Open MPI" in version or "Spectrum MPI" in version:
        return "openmpi"
    return "mpich" if re.search(r"(?i)mpich|intel|mvapich|cray|parastation", version) else ""


def load_library() -> str:
    """Load it into this process, without MPI_Init; its own words about itself."""
    import mpi4py

    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI.Get_library_version().strip("\0\n ")


def _main() -> None:
    version = load_library()
    import h5py  # noqa: F401

    with open("/proc/self/maps") as maps:
        loaded = libraries(maps)
    json.dump({"version": version, "loaded": loaded}, sys.stdout)


if __name__ == "__main__":
    _main()
