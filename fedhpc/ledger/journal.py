"""A site's ledger as its sums see it: the rounds of one federation, within all that the institution has summed.

The rules are in secure/ledger.py and secure/home_ledger.py, the file in ledger/file.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from fedhpc.errors import PolicyError
from fedhpc.ledger.home import LedgerHome
from fedhpc.secure.home_ledger import HomeLedger, KnownFederation, refusal
from fedhpc.secure.ledger import LedgerEntry, RoundLedger

_LOST = "lost ledger"  # stands in place of a purpose, in the line that says so


class Journal(Protocol):
    """Where a site's ledger lives."""

    ledger: RoundLedger
    fresh: bool
    """Whether the ledger knows nothing of this federation, or that it was lost: another may know more."""

    def refuse_lost(self, what: str) -> None:
        """Write down, for later starts, that the ledger of this federation is lost."""
        ...

    def allows(self, entry: LedgerEntry) -> None:
        """Raise PolicyError if the ledger forbids `entry`; nothing is admitted."""
        ...

    def admit(self, entry: LedgerEntry) -> None:
        """Return once `entry` is durable, or raise PolicyError if the ledger forbids it."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class MemoryJournal(Journal):
    """A ledger that ends with the process: for benchmarks, mode `off` and a single site."""

    def __init__(
        self,
        federation: KnownFederation | None = None,
        home: HomeLedger | None = None,
        accepted: Collection[str] = (),
    ) -> None:
        """Without `federation` the rules of one federation are kept, and no others."""
        self._home = HomeLedger() if home is None else home
        self._config, self._accepted = b"" if federation is None else federation.config, accepted
        self._known = federation is not None
        if federation is not None:
            self._home.know(federation)
        self.ledger = self._home.of(self._config) if self._known else RoundLedger()
        self.fresh = False

    @override
    def refuse_lost(self, what: str) -> None:
        """Remembers it in memory only."""

    @override
    def allows(self, entry: LedgerEntry) -> None:
        self._check(entry)

    @override
    def admit(self, entry: LedgerEntry) -> None:
        """Remembers it in memory only."""
        if self._check(entry):
            if self._known:
                self._home.add(dataclasses.replace(entry, config=self._config))
            else:
                self.ledger.add(entry)

    @override
    def close(self) -> None:
        """There is nothing to release."""

    def _check(self, entry: LedgerEntry) -> bool:
        if self._known:
            return self._home.check(dataclasses.replace(entry, config=self._config), self._accepted)
        return self.ledger.check(entry)


class FileJournal(Journal):
    """The ledger of one federation in the institution's home; its configuration's lock is held until `close`."""

    def __init__(
        self,
        home: LedgerHome,
        federation: KnownFederation,
        run: Path,
        *,
        accepted: Collection[str] = (),
        wait_s: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`run`: the site's run directory. `accepted`: classes whose differences all sites accept.

        `wait_s`: how long another run of this configuration is waited for. Raises StorageError if it still runs or the
        home cannot be used, PolicyError if the ledger was altered.
        """
        self._accepted, self._clock, self._federation = accepted, clock, federation
        self._run = home.begin_run(federation.config, federation.names[federation.number - 1], run, wait_s)
        try:
            self._file, self.key = home.open()
        except BaseException:
            self._run.close()
            raise
        self.home = self._file.known
        self.ledger = self.home.of(federation.config)
        lost = any((r.get("config"), r.get("purpose")) == (federation.config.hex(), _LOST) for r in self.home.refused)
        self.fresh = lost or federation.config not in self.home.federations
        try:
            self._know()
        except BaseException:
            self.close()
            raise

    @override
    def allows(self, entry: LedgerEntry) -> None:
        with self._file.locked():
            self._check(entry)

    @override
    def admit(self, entry: LedgerEntry) -> None:
        """Raises StorageError if the line cannot be made durable; then nothing may be sent."""
        with self._file.locked():
            if not self._check(entry):
                return
            whole = dataclasses.replace(entry, config=self._federation.config)
            self._file.append({"entry": whole.as_json()}, lambda: self.home.add(whole))

    @override
    def refuse_lost(self, what: str) -> None:
        with self._file.locked():
            self._remember(LedgerEntry(0, _LOST, bytes(32), bytes(32), (), config=self._federation.config), what)

    @override
    def close(self) -> None:
        """Release the lock. Safe to call twice."""
        self._file.close()
        self._run.close()

    def _check(self, entry: LedgerEntry) -> bool:
        """Whether `entry` is new; a refusal is written down."""
        whole = dataclasses.replace(entry, config=self._federation.config)
        try:
            return self.home.check(whole, self._accepted)
        except PolicyError as error:
            self._remember(whole, error.what)
            raise

    def _know(self) -> None:
        """Have the configuration in the ledger before anything is summed in it."""
        federation = self._federation
        with self._file.locked():
            known = self.home.federations.get(federation.config)
            if known is None:
                self._file.append({"federation": federation.as_json()}, lambda: self.home.know(federation))
            elif known != federation:
                raise PolicyError(
                    f"{self._file.path} has this configuration for site {known.names[known.number - 1]}",
                    "give each site a ledger's home of its own: [ledger] path",
                )

    def _remember(self, entry: LedgerEntry, why: str) -> None:
        """Write a refusal down, once for as often as it is tried again."""
        record = dict(refusal(entry, why, int(self._clock())))
        last = self.home.refused[-1] if self.home.refused else {}
        if {k: v for k, v in record.items() if k != "when"} != {k: v for k, v in last.items() if k != "when"}:
            self._file.append({"refused": record}, lambda: self.home.refused.append(record))
