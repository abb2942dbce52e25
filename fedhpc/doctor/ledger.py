"""Checks of the institution's ledger: it is whole, and no store is used with two of them."""

from __future__ import annotations

from pathlib import Path

from fedhpc.agreement.run_folder import checkpoints
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.subject import Subject
from fedhpc.errors import PolicyError, StorageError
from fedhpc.ledger.file import LOST_LEDGER_HINT
from fedhpc.ledger.home import KEY_FILE, home_of
from fedhpc.ledger.stores import homes_of

GROUP = "Ledger"
_NO_SITE = "no site file was given"
_CODE = StorageError.exit_code


def ledger(subject: Subject) -> Finding:
    """The ledger's lines and key are there and match."""
    if subject.site is None:
        return skipped(_NO_SITE)
    home = home_of(subject.site)
    key = home.folder / KEY_FILE
    try:
        if not home.ledger.exists():
            if key.exists():
                return fail(f"{home.ledger} is missing beside its key", LOST_LEDGER_HINT, 77)
            if subject.directory is not None and checkpoints(subject.directory / "checkpoints"):
                return fail(f"{home.folder} has no ledger, and the run has checkpoints", LOST_LEDGER_HINT, 77)
            return ok(f"{home.folder}: no sum yet")
        known = home.look()
        if known.federations and not key.exists():
            return fail(f"{key} is missing", LOST_LEDGER_HINT, 77)
        loose = [path for path in (home.ledger, key) if path.exists() and path.stat().st_mode & 0o077]
    except PolicyError as error:
        return fail(error.what, error.hint, error.exit_code)
    if loose:
        return fail(f"{loose[0]} can be read by others", f"chmod 600 {loose[0]}", _CODE)
    rounds = len(known.entries())
    refused = f", {len(known.refused)} refused" if known.refused else ""
    return ok(f"{home.folder}: {len(known.federations)} configurations, {rounds} rounds{refused}")


def homes(subject: Subject) -> Finding:
    """The site's store is used with this ledger only."""
    given = None if subject.site is None else subject.site.data.get("path")
    if subject.site is None or not isinstance(given, str):
        return skipped("the site file names no data")
    if subject.site.exchange.kind == "mpi":
        return skipped('sites that meet in one MPI job are a rehearsal: [exchange] kind = "mpi"')
    store, home = subject.site.path(Path(given)), home_of(subject.site)
    others = [known for known in homes_of(store) if not _same(Path(known), home.folder)]
    if others:
        return fail(
            f"{store} is used with two ledgers: {home.folder} and {others[0]}",
            "one institution has one ledger: name the same [ledger] path in all site files",
            PolicyError.exit_code,
        )
    if not store.exists():
        return warn(f"{store} is not there", "is its file system mounted on this node?")
    return ok(f"{store}: used with {home.folder} only, as far as this account has seen")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


CHECKS = (
    Check("ledger", GROUP, "a site that cannot prove what it has summed must not sum again", ledger),
    Check("ledger-homes", GROUP, "a ledger knows nothing of sums that are in another one", homes),
)
