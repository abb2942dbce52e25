"""Who may use a spool directory: this account alone, or a group, as the directory's own mode says.

A carrier may run under another account. Then people make the directory writable for a group that both are in, and
everything below it is the group's too: files 0660, folders 2770. Else files are 0600 and folders 0700. The umask
changes neither, and nothing is ever open to other accounts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

_GROUP_FILE, _GROUP_FOLDER = 0o660, 0o2770
_OWN_FILE, _OWN_FOLDER = 0o600, 0o700


def is_groups(folder: Path) -> bool:
    """Whether what is made in `folder` belongs to its group: the group may write there. Raises OSError."""
    return bool(folder.stat().st_mode & stat.S_IWGRP)


def file_mode(folder: Path) -> int:
    """The mode of a new file in `folder`. Raises OSError."""
    return _GROUP_FILE if is_groups(folder) else _OWN_FILE


def make_folder(path: Path) -> None:
    """Make `path` and what is missing above it, with the access of the folder above. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    if not is_groups(path.parent):
        path.mkdir(_OWN_FOLDER, exist_ok=True)
        return
    # Under another name first: a process that finds the folder finds it with its final mode.
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    made.mkdir(_OWN_FOLDER)
    group = path.parent.stat().st_gid
    if made.stat().st_gid != group:  # the folder above is not setgid
        with contextlib.suppress(OSError):
            os.chown(made, -1, group)
    made.chmod(_GROUP_FOLDER)
    try:
        made.rename(path)
    except OSError:
        made.rmdir()
        if not path.is_dir():
            raise


def open_part(path: Path) -> int:
    """A handle for reading and writing the file `path`, which is made if it is not there. Raises OSError."""
    make_folder(path.parent)
    mode = file_mode(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) != mode:
            os.fchmod(handle, mode)
    except BaseException:
        os.close(handle)
        raise
    return handle
