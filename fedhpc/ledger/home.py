"""The home of an institution's ledger: one folder for all its federations, wherever they run.

HOME/ledger.jsonl       what was summed (ledger/file.py)
HOME/ledger.key         the key of its fingerprints [32], mode 0600, made once and kept when a site's keys change
HOME/runs/CONFIG.lock   held by the run of that configuration; names its run directory, also when it has ended
HOME/runs/CONFIG.stopped   this configuration never counts exponents again (scale_choice.py)
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.site_file import SiteFile
from fedhpc.errors import ConfigError, PolicyError, StorageError
from fedhpc.files import sync_folder
from fedhpc.ledger.file import LEDGER_FILE, LOST_LEDGER_HINT, LedgerFile, lock
from fedhpc.secure.home_ledger import HomeLedger, KnownFederation

KEY_FILE = "ledger.key"
_KEY_BYTES = 32
_MOST_BYTES = 64 << 10


def home_of(file: SiteFile, environment: Mapping[str, str] = os.environ) -> LedgerHome:
    """The home that a site file names, or the default one: by the site's name in the user's data directory."""
    if file.ledger.path is not None:
        return LedgerHome(file.path(file.ledger.path))
    return LedgerHome(data_directory(environment) / "ledger" / file.site.name)


def data_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where fedhpc keeps what belongs to a user. Raises ConfigError if there is no place."""
    given = environment.get("XDG_DATA_HOME", "")
    if given.startswith("/"):
        return Path(given) / "fedhpc"
    try:
        return Path.home() / ".local" / "share" / "fedhpc"
    except RuntimeError:
        raise ConfigError(
            "there is no home directory for the ledger", "[ledger] path = DIRECTORY in the site file"
        ) from None


def known_federation(agreement: Agreement, number: int) -> KnownFederation:
    """What the ledger remembers of a configuration. Raises PolicyError for a roster that cannot be masked."""
    thresholds = agreement.secure.thresholds(len(agreement.roster))
    return KnownFederation(
        config=agreement.hash,
        name=agreement.federation.name,
        epoch=agreement.federation.epoch,
        number=number,
        colluders=0 if thresholds is None else thresholds.colluders,
        names=tuple(agreement.names),
        identities=tuple(entry.identity for entry in agreement.roster),
    )


class LedgerHome:
    """The folder. Nothing is made before `key` or `begin_run`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.folder / LEDGER_FILE

    @property
    def runs(self) -> Path:
        """What is known of single configurations."""
        return self.folder / "runs"

    def look(self) -> HomeLedger:
        """What the ledger says, without holding it; nothing where there is none. Raises StorageError, PolicyError."""
        file = LedgerFile(self.ledger, make=False)
        file.close()
        return file.known

    def open(self) -> tuple[LedgerFile, bytes]:
        """The ledger and its key [32], each made if it is missing. Raises StorageError, PolicyError."""
        if (self.folder / KEY_FILE).exists() and not self.ledger.exists():
            raise PolicyError(
                f"the ledger {self.ledger} is missing, and its key is there",
                LOST_LEDGER_HINT,
            )
        file = LedgerFile(self.ledger)
        try:
            with file.locked():
                return file, self._key(empty=not file.known.federations)
        except BaseException:
            file.close()
            raise

    def key(self) -> bytes:
        """The key of the home's fingerprints [32], made if it is missing. Raises StorageError, PolicyError."""
        file, key = self.open()
        file.close()
        return key

    def _key(self, *, empty: bool) -> bytes:
        """The key, under the ledger's lock; a new one only for a ledger that is `empty`."""
        path = self.folder / KEY_FILE
        try:
            if path.exists():
                if path.stat().st_mode & 0o077:
                    raise StorageError(f"the ledger's key {path} can be read by others", f"chmod 600 {path}")
                key = path.read_bytes()
                if len(key) == _KEY_BYTES:
                    return key
                if empty:
                    path.unlink()  # its first writer was killed: nothing was summed with it
            if not empty:
                raise PolicyError(
                    f"the key of the ledger, {path}, is missing or damaged",
                    f"without it the ledger cannot tell what was summed before: {LOST_LEDGER_HINT}",
                )
            key = secrets.token_bytes(_KEY_BYTES)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(handle, key)
                os.fsync(handle)
            finally:
                os.close(handle)
            sync_folder(self.folder)
        except OSError as error:
            raise StorageError(f"cannot use the ledger's key {path}: {error.strerror}") from None
        return key

    def begin_run(self, config: bytes, site: str, run: Path, wait_s: float) -> RunLock:
        """Hold the lock of one configuration for the life of a run in `run`, the site's own directory.

        Raises StorageError while another run of it holds it for longer than `wait_s`.
        """
        return RunLock(self._lock_file(config), site, run, wait_s)

    def run_of(self, config: bytes) -> Path | None:
        """The site's run directory (RUN/SITE) of the newest run of a configuration on this machine; None if unknown."""
        found = _read(self._lock_file(config))
        return Path(found["run"]) if found.get("run") else None

    def running(self) -> dict[str, str]:
        """Configuration (hex) -> run directory, of all runs that the home has seen."""
        files = sorted(self.runs.glob("*.lock"))
        return {file.stem: _read(file).get("run", "") for file in files}

    def _lock_file(self, config: bytes) -> Path:
        return self.runs / f"{config.hex()}.lock"


class RunLock:
    """The lock of one configuration, until `close`."""

    def __init__(self, path: Path, site: str, run: Path, wait_s: float) -> None:
        self._file = -1
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            held = _read(path)
            self._lock(path, held, site, wait_s)
            text = json.dumps({"run": str(run.absolute()), "site": site}).encode() + b"\n"
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text, 0)
        except OSError as error:
            self.close()
            raise StorageError(f"cannot use {path}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def _lock(self, path: Path, held: Mapping[str, str], site: str, wait_s: float) -> None:
        where = held.get("run") or str(path.parent)
        if held.get("site", site) != site:
            raise ConfigError(
                f"the ledger's home {path.parent.parent} is site {held['site']}'s in this federation, not {site}'s",
                "give each site a home of its own: [ledger] path",
            )
        hint = "wait for it to end; a second run beside it is the next epoch: `fedhpc federation next --again`"
        lock(self._file, path, time.monotonic() + wait_s, f"another run is using {where}", hint)

    def close(self) -> None:
        """Let others run it. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _read(path: Path) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_MOST_BYTES))
        return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
    except (OSError, ValueError):
        return {}
