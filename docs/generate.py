"""Writes the pages of this folder that are made from the code: `python docs/generate.py`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = (
    *("", "cli", "demo", "bench", "doctor", "slurm", "report", "app", "enrolment", "train", "rounds", "sums"),
    *("federation", "ledger", "agreement", "relay", "transport", "wire", "cohort", "data", "secure", "horovod", "mpi"),
    "kernel",
)
"""The rows of the house, from above, as in setup.cfg."""


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def folders() -> Iterator[Path]:
    """The package's folders, in the order of the rows; a room before the rooms in it."""
    package = ROOT / "fedhpc"
    found = [path.parent for path in package.rglob("__init__.py")]
    yield from sorted(found, key=lambda path: (_row(path.relative_to(package)), path))


def _row(folder: Path) -> int:
    return ORDER.index(folder.parts[0] if folder.parts else "")


def files_page() -> str:
    """docs/files.md: each file of the package with the first line of its docstring."""
    lines = [
        "# Files",
        "",
        "What each file is for, in its own words; the rows of [architecture.md](architecture.md#rows), from above.",
        "Made by `python docs/generate.py`.",
    ]
    for folder in folders():
        name = f"{folder.relative_to(ROOT)}/"
        lines += ["", f"## `{name}`", "", first_line(folder / "__init__.py"), ""]
        files = [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
        lines += [f"- `{path.name}`: {first_line(path)}" for path in files]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Path -> text of every generated page."""
    return {ROOT / "docs" / "files.md": files_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
