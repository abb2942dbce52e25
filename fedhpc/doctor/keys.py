"""Checks of the site's keys: only their owner can read them, and they are those of the roster."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedhpc.agreement.approvals import Approvals
from fedhpc.agreement.identity import lost_keys_hint, read_identity
from fedhpc.agreement.site_file import SiteFile
from fedhpc.config import read_bytes
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.subject import Subject
from fedhpc.errors import ConfigError, FedhpcError, PolicyError
from fedhpc.secure.keys import identity_public
from fedhpc.wire.pins import pin_of, pin_of_key, read_certificate

GROUP = "Keys"
_CODE = PolicyError.exit_code
_NO_SITE = "no site file was given"


def private(subject: Subject) -> Finding:
    """Every key file, also row keys beside them, is its owner's alone, and so are their folders."""
    if subject.site is None:
        return skipped(_NO_SITE)
    paths = key_files(subject.site)
    if not paths:
        return skipped("the site file names no keys")
    open_folders: list[Finding] = []
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            return fail(f"{path}: {error.strerror}", _fix(subject.site), _CODE)
        if not stat.S_ISREG(found.st_mode):
            return fail(f"{path} is not a file", "name the key file", _CODE)
        if found.st_mode & 0o077:
            return fail(f"{path} can be read by others (mode {found.st_mode & 0o777:04o})", f"chmod 600 {path}", _CODE)
        if found.st_uid != os.geteuid():
            return fail(
                f"{path} belongs to another user ({found.st_uid})", f"chown it, or run as {found.st_uid}", _CODE
            )
        folder = path.absolute().parent
        mode = folder.stat().st_mode
        if mode & 0o022 and not mode & stat.S_ISVTX:
            what = f"others can replace files in {folder} (mode {mode & 0o777:04o})"
            everybody = bool(mode & 0o002)
            open_folders.append(
                fail(what, f"chmod go-w {folder}", _CODE) if everybody else warn(what, f"chmod g-w {folder}")
            )
    if open_folders:
        return next((found for found in open_folders if found.state == "fail"), open_folders[0])
    return ok(", ".join(path.name for path in paths) + ": for their owner only")


def key_files(site: SiteFile) -> list[Path]:
    """The keys that a site file names, and every other *.key beside it."""
    named = [site.path(k) for k in (site.site.key, site.exchange.key) if k is not None]
    return list(dict.fromkeys([*named, *sorted(p for p in site.base.glob("*.key") if p not in named)]))


def roster(subject: Subject) -> Finding:
    """Our keys are those in the roster that the other sites signed."""
    site, agreement = subject.site, subject.agreement
    if site is None or agreement is None:
        return skipped("no federation.toml was found" if site is not None else _NO_SITE)
    entry = agreement.roster[agreement.number_of(site.site.name) - 1]
    matched: list[str] = []
    try:
        if site.site.key is not None:
            if identity_public(read_identity(site.path(site.site.key))).hex() != entry.sign:
                return fail(f"{site.path(site.site.key)} is not the key of the roster", _fix(site), _CODE)
            matched.append("sign")
        if site.exchange.key is not None and site.exchange.certificate is not None:
            pin = _pin_of_private(site.path(site.exchange.key))
            if pin != entry.tls:
                return fail(f"{site.path(site.exchange.key)} is not the TLS key of the roster", _fix(site), _CODE)
            if pin_of(read_certificate(site.path(site.exchange.certificate))).hex() != pin:
                path = site.path(site.exchange.certificate)
                return fail(f"{path} is not for this TLS key", f"`fedhpc site request {site.base} --wait`", _CODE)
            matched.append("tls")
    except FedhpcError as error:
        return fail(error.what, error.hint or _fix(site), _CODE)
    return ok(f"the roster's: {', '.join(matched)}") if matched else skipped("the site file names no keys")


def _fix(site: SiteFile) -> str:
    """What to do at a site without the keys that were enrolled."""
    return "put the key back from a backup" if site.exchange.kind == "mpi" else lost_keys_hint(site.base)


def _pin_of_private(path: Path) -> str:
    try:
        key = load_pem_private_key(read_bytes(path), None)
        return pin_of_key(key.public_key()).hex()  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a private key: {error}") from None


def approved(subject: Subject) -> Finding:
    """This site has signed exactly this federation.toml."""
    site, agreement = subject.site, subject.agreement
    if site is None or agreement is None:
        return skipped("no federation.toml was found" if site is not None else _NO_SITE)
    if site.exchange.kind == "mpi":
        return skipped('sites that meet in one MPI job sign nothing: [exchange] kind = "mpi"')
    try:
        Approvals(site.base / "approvals").own(agreement)
    except PolicyError as error:
        return fail(error.what, error.hint, _CODE)
    return ok(f"this site has signed {agreement.hash.hex()[:16]}")


CHECKS = (
    Check("keys-private", GROUP, "anyone who can read a key can sign as this site", private),
    Check("keys-roster", GROUP, "the other sites and the relay accept no other keys", roster),
    Check("keys-approved", GROUP, "a site runs only what it has signed", approved),
)
