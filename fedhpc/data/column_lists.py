"""Many columns at once: those of a file that fit a pattern, and those in a list that the sites share.

A pattern gives its columns sorted by name, so that their order does not depend on a site's file; which they are is
in `feature_sha256`. A list gives its own order, and leaves out what only some sites have measured.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

from fedhpc.config import read_bytes
from fedhpc.data.spelling import visible
from fedhpc.errors import ConfigError, DataError

LARGEST_LIST_BYTES = 64 << 20


def fitting(pattern: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that fit `pattern` (*, ?, [a-z]; case matters), sorted by code point. Raises DataError."""
    fits = re.compile(fnmatch.translate(visible(pattern))).match
    found = sorted({name for name in names if name and fits(name)})
    if not found:
        raise DataError(f"no column fits pattern '{pattern}'", "case matters; * is any text, ? one character")
    return found


def read_list(path: Path) -> list[str]:
    """The names in the text file `path`, one on a line; empty lines are left out. Raises ConfigError."""
    try:
        lines = read_bytes(path, LARGEST_LIST_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8", "save it as UTF-8 text, one column on a line") from None
    names = [name for line in lines if (name := visible(line))]
    if not names:
        raise ConfigError(f"{path} names no column", "one column on a line")
    if len(set(names)) != len(names):
        raise ConfigError(f"{path} names a column twice", "`sort FILE | uniq -d` shows which")
    return names
