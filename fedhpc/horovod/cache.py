"""Where wheels of Horovod are kept: one folder for each key in the user's cache, and never half of one.

A folder has the wheel, those that it needs, and `built.json` with what it was built for and the SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from fedhpc.errors import ConfigError, StorageError
from fedhpc.horovod.build import VERSION
from fedhpc.horovod.target import Target

_BUILT = "built.json"


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """XDG_CACHE_HOME/fedhpc/horovod, by default in ~/.cache. A relative path is not one, by the XDG specification."""
    given = Path(environment.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "fedhpc" / "horovod"


def find(cache: Path, key: str) -> Path | None:
    """The folder of this key, if it is there and whole.

    Raises StorageError if others may write into it: what is installed from there runs as this user.
    """
    folder = cache / key
    try:
        facts = json.loads((folder / _BUILT).read_text())
        files = {str(name): str(sha256) for name, sha256 in facts["files"].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    require_own(cache.parent, cache, folder)
    if {path.name for path in folder.glob("*.whl")} != files.keys():
        return None
    return folder if all(_sha256(folder / name) == sha256 for name, sha256 in files.items()) else None


def require_own(*folders: Path) -> None:
    """Raises StorageError if others may write into one of `folders`."""
    for path in folders:
        status = path.lstat()
        own = stat.S_ISDIR(status.st_mode) and status.st_uid in (0, os.geteuid())
        if not own or status.st_mode & 0o022:
            raise StorageError(f"others may write into {path}", "remove it, or `chmod go-w` it if it is yours")


def put(made: Path, cache: Path, key: str, target: Target) -> Path:
    """Move the directory `made`, which lies in `cache`, to the place of this key; returns that."""
    files = {path.name: _sha256(path) for path in sorted(made.glob("*.whl"))}
    text = json.dumps({"horovod": VERSION, "target": asdict(target), "files": files}, indent=1)
    (made / _BUILT).write_text(text + "\n")
    folder = cache / key
    shutil.rmtree(folder, ignore_errors=True)  # one that is not whole, or that another build has just made
    try:
        return made.rename(folder)
    except OSError as error:
        raise StorageError(f"cannot keep the wheel as {folder}: {error.strerror}") from error


def install(folder: Path) -> None:
    """Install from a folder of the cache, and from nowhere else. Raises ConfigError if pip refuses."""
    words = ["--quiet", "--no-index", "--find-links", str(folder), "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", "install", *words, f"horovod=={VERSION}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ConfigError(f"pip cannot install Horovod from {folder}: {lines[-1]}", "is this Python a venv of yours?")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
