"""Sites of one job as threads that meet at a table, for the tests of sums in one job: no MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation_fakes import WAIT_S, agreement_of, party_of
from numpy.typing import NDArray
from secure_fakes import key_of

from fedhpc.errors import FedhpcError
from fedhpc.federation.cores import Cores
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.ring import Tensor
from fedhpc.sums.in_job.masked_sum import MpiSums
from fedhpc.sums.in_job.peers import JobPeers, JobRecovery
from fedhpc.sums.in_job.pipeline import Pipeline

SITES = 3


class Table:
    """Where the sites meet."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(SITES, timeout=WAIT_S)
        self.there: dict[int, Any] = {}

    def all_of(self, number: int, mine: Any) -> list[Any]:
        self.there[number] = mine
        self.barrier.wait()
        found = [self.there[u] for u in sorted(self.there)]
        self.barrier.wait()
        return found


Carrier = Callable[[int, int, list[bytes]], list[bytes]]
"""(site, how many messages it has been given with this one, what all sites said): what the site is given."""


def honest(number: int, count: int, said: list[bytes]) -> list[bytes]:
    """What the sites said."""
    return said


class Seat:
    """An Exchange of one site, that notes what happens there. `carrier` may change what the site is given."""

    name, sites = "table", SITES

    def __init__(self, table: Table, number: int, noted: list[str], sent: list[bytes], carrier: Carrier) -> None:
        self._table, self._number, self._carrier = table, number, carrier
        self._noted, self._sent = noted, sent

    def gather(self, message: bytes) -> list[bytes]:
        self._noted.append("message")
        self._sent.append(message)
        said = self._table.all_of(self._number, message)
        return self._carrier(self._number, self._noted.count("message"), said)

    def add(self, lanes: NDArray[Any], owners: tuple[int, ...]) -> None:
        self._noted.append("lanes")
        self._sent.append(lanes.tobytes())
        lanes[:] = sum(self._table.all_of(self._number, lanes.copy()))

    def leave(self, last_word: bytes = b"", *, refused: bool = False) -> list[bytes] | None:
        self._noted.append(f"leave refused={refused}")
        said = self._table.all_of(self._number, (refused, last_word))
        return None if any(r for r, _ in said) else [word for _, word in said]


class Work(Protocol):
    def __call__(self, session: Session, number: int) -> None: ...


class Job:
    """Three sites in one job, as threads."""

    def __init__(self, carrier: Carrier = honest, **secure: Any) -> None:
        self._agreement, self._table, self._carrier = agreement_of(SITES, secure=secure), Table(), carrier
        self.noted: dict[int, list[str]] = {u: [] for u in range(1, SITES + 1)}
        self.sent: dict[int, list[bytes]] = {u: [] for u in self.noted}
        self.cores = Cores()

    def session(self, number: int) -> Session:
        noted = self.noted[number]
        identity = Ed25519PrivateKey.from_private_bytes(key_of("identity", number))
        party = replace(party_of(self._agreement, number), identity=identity, cores=self.cores)
        assert party.journal is not None
        admit: Callable[[LedgerEntry], None] = party.journal.admit

        def note(entry: LedgerEntry) -> None:
            noted.append("ledger")
            admit(entry)

        party.journal.admit = note  # type: ignore[method-assign]
        exchange = Seat(self._table, number, noted, self.sent[number], self._carrier)
        sums = MpiSums(party, exchange, Pipeline(exchange, cores=self.cores), rails=[1] * SITES, attempt=1)
        return Session(party, sums, JobPeers(party, exchange, sums), JobRecovery(party, exchange))

    def run(self, work: Work) -> dict[int, BaseException | None]:
        """What `work` raises at each site."""
        with ThreadPoolExecutor(SITES) as pool:
            running = {u: pool.submit(work, self.session(u), u) for u in self.noted}
        return {u: each.exception() for u, each in running.items()}


def vector(session: Session, number: int) -> Vector:
    made = Vector(session.layout([Tensor("x", "int64", (4,))]))
    made.fill({"x": np.full(4, number)})
    return made


def told(errors: dict[int, BaseException | None]) -> list[str]:
    return [error.what for error in errors.values() if isinstance(error, FedhpcError)]
