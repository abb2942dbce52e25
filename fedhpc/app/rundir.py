"""A run directory belongs to one federation.toml: it holds a copy, and refuses any other file."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.run_folder import FEDERATION_FILE
from fedhpc.errors import PolicyError, StorageError
from fedhpc.files import write_new
from fedhpc.rounds.beginning import OLD_RUN_HINT

__all__ = ["FEDERATION_FILE", "keep_agreement"]


def keep_agreement(run: Path, agreement: Agreement) -> None:
    """Write the agreement into `run`, or check that the one there is the same.

    Raises PolicyError, with both hashes and the sections that differ, if the directory holds another federation.
    """
    path = run / FEDERATION_FILE
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Several sites may get here at once, with the same bytes or, wrongly, with others: the first file stays.
        if not path.exists():
            write_new(path, agreement.source, mode=0o600)
        kept = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", "check space and permissions") from None
    if kept != agreement.source:
        if _is_of_0_1_0(kept):
            raise PolicyError(f"{run} is a run directory of fedhpc 0.1.0 (fedhpc-secagg/1)", OLD_RUN_HINT)
        raise PolicyError(
            f"{run} holds another federation: its file has SHA-256 {hashlib.sha256(kept).hexdigest()[:16]}…, "
            f"yours {agreement.hash.hex()[:16]}… ({_difference(kept, agreement.source)})",
            "a changed agreement is a new federation: give it a run directory of its own with --out",
        )


def _is_of_0_1_0(source: bytes) -> bool:
    """Whether federation.toml names no protocol."""
    try:
        section = tomllib.loads(source.decode()).get("federation", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False
    return isinstance(section, dict) and "protocol" not in section


def _difference(old: bytes, new: bytes) -> str:
    """Which sections differ, for people."""
    try:
        before, after = tomllib.loads(old.decode()), tomllib.loads(new.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return "it is not readable TOML"
    names = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    return "they differ in " + ", ".join(f"[{n}]" for n in names) if names else "they differ in comments only"
