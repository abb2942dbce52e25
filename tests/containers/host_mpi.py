"""This machine's own Open MPI (Debian's), as a site's administrator binds the cluster's into images: the bind model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from places import run

WITHIN = "/run/fedhpc"  # a folder of the image; MPI_DIR says where the host's MPI is
# The image's own: a second C library in one process would end it.
_SYSTEM = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|util|pthread|resolv|gcc_s|stdc\+\+))[.-].*")


@dataclass(frozen=True)
class HostMpi:
    """`binds`: path here -> path in the image, which must exist there; `env`: what makes a program find it."""

    binds: dict[Path, str]
    env: dict[str, str]

    def make_mount_points(self, root: Path) -> None:
        """In the image's directory. Apptainer makes them itself; Charliecloud cannot on a read-only root."""
        for target in self.binds.values():
            (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)


def find(folder: Path) -> HostMpi:
    """The library and what it needs, copied to `folder`; plugins and PMIx, which lie at fixed paths, as they are."""
    library = next(Path("/usr/lib").glob("*/libmpi.so.40"))
    beside = library.parent
    fixed = [path for path in (beside / "openmpi", beside / "pmix2", Path("/usr/share/openmpi")) if path.is_dir()]
    plugins = [path for place in fixed for path in place.rglob("*.so*") if path.is_file()]
    (folder / "lib").mkdir(parents=True)
    for path in needed([library, *plugins]) | {library}:
        shutil.copy(path, folder / "lib" / path.name)
    binds = {folder: WITHIN, **{path: str(path) for path in fixed}}
    return HostMpi(binds, {"MPI_DIR": WITHIN})


def needed(libraries: Iterable[Path]) -> set[Path]:
    """All shared libraries that these load, but for the system's own."""
    out = run(["ldd", *map(str, libraries)])
    found = {Path(path) for path in re.findall(r"=> (/\S+) \(0x", out)}
    return {path for path in found if not _SYSTEM.fullmatch(path.name)}
