"""Where this machine's pip takes packages from, as a pip.conf for builds, which have none of this machine's files.

Files and folders that settings name are bound in below /run, of which nothing stays in an image.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

WITHIN = "/run/pip"


@dataclass(frozen=True)
class Settings:
    """`file`: the pip.conf; `binds`: path here -> where it says that it is."""

    file: Path
    binds: dict[Path, str]


def here(file: Path, cache: Path) -> Settings:
    """Those of this machine, written to `file`; what pip downloads is kept in `cache`."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout
    cache.mkdir(parents=True, exist_ok=True)
    values, binds = settings(listed.splitlines())
    lines = [f"{name} = {value}" for name, value in {**values, "cache-dir": f"{WITHIN}/cache"}.items()]
    file.write_text("\n".join(["[global]", *lines, ""]))
    return Settings(file, {**binds, cache: f"{WITHIN}/cache"})


def settings(lines: Iterable[str]) -> tuple[dict[str, str], dict[Path, str]]:
    """(settings, binds) out of what `pip config list` prints, SECTION.KEY='VALUE'; the environment's own win."""
    values: dict[str, str] = {}
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, equals, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if equals and section in ("global", "install", ":env:"):
            values[key] = str(ast.literal_eval(value))
    binds: dict[Path, str] = {}
    return {name: _moved(value, binds) for name, value in values.items()}, binds


def _moved(value: str, binds: dict[Path, str]) -> str:
    """The same words, each path of this machine replaced by the one at which it is bound; `binds` grows."""
    words = []
    for word in value.split():
        scheme = "file://" if word.startswith("file:///") else ""
        path = Path(word.removeprefix(scheme))
        if not path.is_absolute() or not path.exists():
            words.append(word)
            continue
        # The pages of an index in a directory lead to files beside it.
        bound = path.parent if scheme and path.is_dir() else path
        inside = Path(binds.setdefault(bound, f"{WITHIN}/{len(binds)}"))
        words.append(f"{scheme}{inside / path.relative_to(bound)}" if path != bound else f"{scheme}{inside}")
    return " ".join(words)
