"""A file that is read is not the file that is written: it would be replaced by what was made of it."""

from __future__ import annotations

from pathlib import Path

from fedhpc.errors import ConfigError


def refuse_written_over(out: Path, *read: Path) -> None:
    """ConfigError if the file `out` is, by whatever name, one of those that are `read`, or is a folder."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder", "name the file to write")
    for path in read:
        if out.exists() and path.exists() and out.samefile(path):
            raise ConfigError(f"{out} would be written over {path}", "give it a name of its own")
