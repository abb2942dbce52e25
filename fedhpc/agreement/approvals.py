"""What this site has approved: one signature per configuration, kept beside the site file and never made twice.

approvals/HASH.toml is the federation.toml that was read and signed, HASH.json the signature; `present` names the
newest. A run takes the signature from here, so a federation.toml that was changed since is refused, with the fields
that differ.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.agreement.federation_file import Agreement, FederationSection
from fedhpc.config import parse_toml, read_bytes, read_section
from fedhpc.errors import ConfigError, PolicyError, StorageError
from fedhpc.files import write_whole
from fedhpc.secure.epochs import Configuration, approve
from fedhpc.secure.transcript import parse_canon

_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_SHOWN = 8
_FOLLOWS = ("start.epochs", "start.sites")  # written with federation.previous; long, and nobody reads hashes in a row


@dataclass(frozen=True)
class Approvals:
    """The approvals of one site, in `folder`."""

    folder: Path

    def present(self) -> Configuration | None:
        """The newest configuration that this site approved, if any. Raises StorageError if its copy was changed."""
        source = self.present_source()
        return None if source is None else _place(source, self.folder / "present")

    def present_source(self) -> bytes | None:
        """The bytes of that configuration. Raises StorageError if they are not those that were signed."""
        path = self.folder / "present"
        if not path.exists():
            return None
        name = read_bytes(path).decode("ascii", "replace").strip()
        copy = self.folder / f"{name}.toml"
        if not _HASH.fullmatch(name):
            raise StorageError(f"{path} names no approved configuration", "put the folder back from a backup")
        if not copy.exists():
            raise StorageError(
                f"{copy} is lost: it is the federation.toml that this site approved last",
                "put it back: any file with that SHA-256 will do; the coordinator has it, in epochs/ if a newer one "
                "followed, and each site that ran it, as RUN/federation.toml",
            )
        source = read_bytes(copy)
        if hashlib.sha256(source).hexdigest() != name:
            raise StorageError(f"{copy} was changed after it was approved", "put the folder back from a backup")
        return source

    def approve(self, identity: Ed25519PrivateKey, number: int, agreement: Agreement) -> bytes:
        """This site's signature over `agreement` [message], stored before it is given out. Repeats give the same.

        Raises PolicyError if the configuration does not follow the present one; StorageError.
        """
        self.restore(agreement)
        following = configuration(agreement)
        signature = approve(identity, number, self.present(), following)
        name = following.hash.hex()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {self.folder}: {error.strerror}", "nothing was approved") from None
        write_whole(self.folder / f"{name}.toml", agreement.source)
        write_whole(self.folder / f"{name}.json", signature)
        write_whole(self.folder / "present", name.encode() + b"\n")
        return signature

    def restore(self, agreement: Agreement) -> None:
        """Put the copy of the present configuration back, if it is lost and `agreement` is the same file."""
        copy = self.folder / f"{agreement.hash.hex()}.toml"
        path = self.folder / "present"
        if path.exists() and not copy.exists() and read_bytes(path).strip() == agreement.hash.hex().encode():
            write_whole(copy, agreement.source)

    def own(self, agreement: Agreement) -> bytes:
        """This site's signature over exactly this configuration [message].

        Raises PolicyError with both hashes and the fields that differ if another one is the newest approved here.
        """
        self.restore(agreement)
        present, source = self.present(), self.present_source()
        if present is None or source is None:
            raise PolicyError(
                f"this site has not approved the configuration {agreement.hash.hex()}",
                "read it, then run `fedhpc site approve`",
            )
        if present.hash != agreement.hash:
            told = difference(source, agreement.source)
            older = configuration(agreement).epoch < present.epoch
            raise PolicyError(
                f"this federation.toml is not the one that this site approved; approved {present.hash.hex()} "
                f"(epoch {present.epoch}), given {agreement.hash.hex()}; they differ in {told}",
                "it belongs to an older epoch, which is never accepted again"
                if older
                else "take back the approved file, or read the new one and run `fedhpc site approve`",
            )
        path = self.folder / f"{present.hash.hex()}.json"
        if not path.exists():
            raise StorageError(f"{path} is missing", "run `fedhpc site approve` again")
        signature = read_bytes(path)
        try:
            parse_canon(signature)
        except ValueError:
            raise StorageError(f"{path} is damaged", "run `fedhpc site approve` again") from None
        return signature


def configuration(agreement: Agreement) -> Configuration:
    """The place of `agreement` in the chain of configurations. Raises ConfigError."""
    return _configuration(agreement.hash, agreement.federation)


def difference(before: bytes, after: bytes) -> str:
    """Which fields of two configurations differ, with both values: `train.lr (0.5, now 0.1)`; sites by name."""
    old, new = (_flat(parse_toml(source, "federation.toml")) for source in (before, after))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    names = [name for name in names if name not in _FOLLOWS] or names
    if not names:
        return "comments or spacing only" if before != after else "nothing"
    shown = [f"{name} ({old.get(name, 'absent')}, now {new.get(name, 'absent')})" for name in names[:_MOST_SHOWN]]
    more = [f"{len(names) - _MOST_SHOWN} more"] if len(names) > _MOST_SHOWN else []
    return ", ".join(shown + more)


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Every field by its dotted path, as text for a terminal; entries of the roster by the site's name and number."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [
            (str(item.get("name", at)) if isinstance(item, Mapping) else str(at), item) for at, item in enumerate(value)
        ]
        order = {f"{path}.order": _text([name for name, _ in items])}
        return order | {k: v for name, item in items for k, v in _flat(item, f"{path}.{name}").items()}
    else:
        return {path: _text(value)}
    return {k: v for name, item in items for k, v in _flat(item, f"{path}.{name}" if path else name).items()}


def _text(value: Any) -> str:
    """A value on one line, short."""
    text = "".join(c if c.isprintable() else "?" for c in (value if isinstance(value, str) else str(value)))
    return (text or "empty") if len(text) <= 40 else f"{text[:16]}…"


def _place(source: bytes, where: Path) -> Configuration:
    section = read_section(FederationSection, parse_toml(source, str(where)).get("federation"), "federation")
    return _configuration(hashlib.sha256(source).digest(), section)


def _configuration(hash_: bytes, section: FederationSection) -> Configuration:
    if section.previous and not _HASH.fullmatch(section.previous):
        raise ConfigError("federation.previous is not a SHA-256", "64 lower-case hex digits")
    return Configuration(hash_, section.epoch, bytes.fromhex(section.previous))
