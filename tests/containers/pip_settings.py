"""Where this machine's pip takes packages from, told to a pip in a root file system that has none of its files.

`apptainer build` empties the environment of %post but for APPTAINERENV_*, so a site says APPTAINERENV_PIP_INDEX_URL
and so on; here that is PIP_INDEX_URL at once. Files and folders that settings name are bound in below /run.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

WITHIN = "/run/pip"  # a tmpfs while something runs in the root: nothing of it stays in the image


@dataclass(frozen=True)
class Settings:
    """`env`: PIP_* variables; `binds`: path here -> where they say that it is."""

    env: dict[str, str] = field(default_factory=dict)
    binds: dict[Path, str] = field(default_factory=dict)


def here(cache: Path) -> Settings:
    """Those of this machine; what pip downloads is kept in `cache`."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout
    cache.mkdir(parents=True, exist_ok=True)
    found = settings(listed.splitlines())
    return Settings(
        {**found.env, "PIP_CACHE_DIR": f"{WITHIN}/cache", "PIP_ROOT_USER_ACTION": "ignore"},
        {**found.binds, cache: f"{WITHIN}/cache"},
    )


def settings(lines: Iterable[str]) -> Settings:
    """Out of what `pip config list` prints: SECTION.KEY='VALUE'; the environment's own go last, and first."""
    values: dict[str, str] = {}
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, equals, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if equals and section in ("global", "install", ":env:"):
            values[f"PIP_{key.upper().replace('-', '_')}"] = str(ast.literal_eval(value))
    binds: dict[Path, str] = {}
    return Settings({name: _moved(value, binds) for name, value in values.items()}, binds)


def _moved(value: str, binds: dict[Path, str]) -> str:
    """The same words, each path of this machine replaced by the one at which it is bound; `binds` grows."""
    words = []
    for word in value.split():
        scheme = "file://" if word.startswith("file:///") else ""
        path = Path(word.removeprefix(scheme))
        if not path.is_absolute() or not path.exists():
            words.append(word)
            continue
        # The pages of a simple index in a directory lead to files beside it.
        bound = path.parent if scheme and path.is_dir() else path
        inside = binds.setdefault(bound, f"{WITHIN}/{len(binds)}")
        words.append(scheme + os.path.join(inside, path.relative_to(bound)) if path != bound else scheme + inside)
    return " ".join(words)
