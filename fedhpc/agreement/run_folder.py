"""RUN and RUN/SITE: where they are; their mode, 0700 whatever the umask; and the one configuration they belong to.

What a site measures, its losses and its numbers of rows are in them; on clusters the group is often the whole project.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from fedhpc.agreement.federation_file import Agreement
from fedhpc.errors import PolicyError, StorageError
from fedhpc.files import hint_for, private_folder, tighten, write_new

FEDERATION_FILE = "federation.toml"
_CONFIGURATION = "configuration"  # SHA-256 of federation.toml, in hex
_log = logging.getLogger("fedhpc.federation")

CHECKPOINT_INDEX = "index.h5"
_CHECKPOINT = re.compile(r"round-(\d{6,12})(\.h5)?")


def run_place(federation: Path, agreement: Agreement, given: Path | None = None) -> Path:
    """RUN: `given`, or `run` beside the file `federation`; `run-3` in epoch 3, whose rounds begin anew."""
    if given is not None:
        return given
    epoch = agreement.federation.epoch
    return federation.parent / (f"run-{epoch}" if epoch else "run")


def make_run_folder(directory: Path, federation: Path, *, placed: bool) -> None:
    """Make RUN/SITE = `directory`, mode 0700, and RUN where it is a run directory; those of an older run are tightened.

    `federation`: the agreed file: the folder that it lies in is the user's own and stays as it is, and so does one that
    holds other things than a run. `placed`: by [site] directory, so that the folder above it is no RUN.
    Raises StorageError.
    """
    run = directory.parent
    try:
        if not placed and (not run.exists() or _is_run(run, federation)):
            before = run.exists() and bool(run.stat().st_mode & 0o077)
            private_folder(run)
            if before:
                _log.info("others could look into %s; now only its owner can", run)
        if directory.is_dir() and tighten(directory):
            _log.info("others could look into %s; now only its owner can", directory)
    except OSError as error:
        raise StorageError(f"cannot use {run}: {error.strerror}", hint_for(error)) from None
    private_folder(directory)


def bind_run_folder(directory: Path, config: bytes) -> None:
    """Bind RUN/SITE to the configuration of hash `config` [32]: rounds of two configurations have the same numbers.

    Then its lock in the ledger's home also keeps a second process out of attempts/ and sums/.
    Raises PolicyError if it is another configuration's, StorageError.
    """
    path = directory / _CONFIGURATION
    try:
        if not path.exists():
            write_new(path, config.hex().encode() + b"\n", mode=0o600)
        kept = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot use {path}: {error}", "check space and permissions") from None
    if kept != config.hex():
        raise PolicyError(
            f"{directory} holds a run of another federation.toml: SHA-256 {kept[:16]}…, yours {config.hex()[:16]}…",
            "a changed agreement is another federation: give it a run directory of its own (--out, join(run=…))",
        )


def _is_run(run: Path, federation: Path) -> bool:
    """Whether an existing folder holds a run, or nothing yet."""
    names = os.listdir(run)
    if FEDERATION_FILE not in names:
        return not names
    return not (federation.exists() and os.path.samefile(run / FEDERATION_FILE, federation))


def checkpoints(directory: Path) -> dict[int, Path]:
    """The checkpoints in RUN/SITE/checkpoints by round, rising, whole or not: files, and folders that have an index."""
    found = {}
    for path in directory.glob("round-*"):
        match = _CHECKPOINT.fullmatch(path.name)
        if match and (match[2] or (path / CHECKPOINT_INDEX).exists()):
            found[int(match[1])] = path
    return dict(sorted(found.items()))
