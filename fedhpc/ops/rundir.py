"""A run directory belongs to one federation.toml: a copy lies in it, and another file is refused."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tomllib
from pathlib import Path

from fedhpc.errors import PolicyError, StorageError
from fedhpc.federation.agreement import Agreement

FEDERATION_FILE = "federation.toml"


def keep_agreement(run: Path, agreement: Agreement) -> None:
    """Write the agreement into `run`, or check that the one there is the same.

    Raises PolicyError, with both hashes and the sections that differ, if the directory holds another federation.
    """
    path = run / FEDERATION_FILE
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            temporary = path.with_name(f".{FEDERATION_FILE}.{secrets.token_hex(8)}")
            temporary.write_bytes(agreement.source)
            # Several sites may come here at once, with the same bytes or, wrongly, with others: the first stays.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        kept = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", "check space and permissions") from None
    if kept != agreement.source:
        raise PolicyError(
            f"{run} holds another federation: its file has SHA-256 {hashlib.sha256(kept).hexdigest()[:16]}…, "
            f"yours {agreement.hash.hex()[:16]}… ({_difference(kept, agreement.source)})",
            "a changed agreement is a new federation: give it a run directory of its own with --out",
        )


def _difference(old: bytes, new: bytes) -> str:
    """Which sections differ, for people."""
    try:
        before, after = tomllib.loads(old.decode()), tomllib.loads(new.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return "it is not readable TOML"
    names = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    return "they differ in " + ", ".join(f"[{n}]" for n in names) if names else "they differ in comments only"
