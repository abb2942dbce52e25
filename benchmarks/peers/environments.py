"""An environment for each peer, from benchmarks/peers/NAME.txt, in build/peers/NAME: nothing else is touched."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "peers"


class EnvironmentFailedError(Exception):
    """pip could not install what a peer needs; in one line."""


def python_of(name: str, pins: Path = HERE, build: Path = BUILD) -> Path:
    """The Python of the environment `name`, which is made anew if it is not whole, or its pins have changed.

    Raises EnvironmentFailedError.
    """
    folder = build / name
    python = folder / "bin" / "python"
    wanted = pins / f"{name}.txt"
    if not wanted.exists():
        raise EnvironmentFailedError(f"there is no {wanted.name}")
    constraints = ROOT / "constraints.txt"
    made = stamp(wanted, constraints, folder)
    mark = folder / "made-of"
    if mark.exists() and mark.read_text() == made and python.exists():
        return python
    print(f"making {folder}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])  # an interrupted pip may have left half a package
    _run([str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), "-r", str(wanted)])
    mark.write_text(made)  # last: where it is, the environment is whole
    return python


def stamp(wanted: Path, constraints: Path, folder: Path) -> str:
    """What a whole environment was made of, and where: commands in it name their Python, so it cannot be moved."""
    parts = (wanted.read_bytes(), constraints.read_bytes(), str(folder.resolve()).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def pinned(name: str, package: str, pins: Path = HERE) -> str:
    """The version of `package` in NAME.txt; "unknown" if it has none."""
    path = pins / f"{name}.txt"
    for line in path.read_text().splitlines() if path.exists() else []:
        found = re.fullmatch(r"([\w.-]+)(?:\[[\w,.-]+\])?==(\S+).*", line.strip())
        if found and found[1].lower() == package.lower():
            return found[2]
    return "unknown"


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise EnvironmentFailedError(f"{' '.join(words[1:4])}: exit code {done.returncode}: {''.join(last)}")
