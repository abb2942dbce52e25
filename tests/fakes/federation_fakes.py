"""Sites of one federation as threads of a test: real Session and GlobalModel over sums that are added up in memory.

meeting = Meeting(4, strategy={"weights": "uniform"})
meeting.lost[3] = {2}                         # masked sum 3 is over all but site 2
results = meeting.run(lambda session: ...)        # by site
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from secure_fakes import key_of

from fedhpc.agreement.federation_file import PROTOCOL_NAME, Agreement, read_agreement
from fedhpc.errors import InterruptedRun
from fedhpc.federation.input_check import codec_of
from fedhpc.federation.other_sites import Recovery, Summing
from fedhpc.federation.party import Checked, Opened, Party, RoundOverError, Summed, SumPlan
from fedhpc.federation.session import Session
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.ledger.home import LedgerHome
from fedhpc.ledger.journal import FileJournal, MemoryJournal
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.secure.home_ledger import KnownFederation
from fedhpc.secure.keys import identity_public
from fedhpc.secure.ledger import ledger_keys
from fedhpc.secure.ring import Layout, lanes_of
from fedhpc.secure.salt import salt_key
from fedhpc.secure.suite import SHA256
from fedhpc.sums.unconnected import NeverAway, OwnRanks

_T = TypeVar("_T")
WAIT_S = 60.0


def agreement_of(
    sites: int, samples: tuple[int, ...] = (), rounds: int = 1, **sections: Mapping[str, Any]
) -> Agreement:
    """federation.toml of sites s1, s2, …; `samples` in the roster."""
    lines = ["[federation]", "name = 'test'", f"protocol = '{PROTOCOL_NAME}'", f"rounds = {rounds}"]
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{k} = {v!r}" for k, v in values.items())]
    for u in range(1, sites + 1):
        lines += ["[[site]]", f"name = 's{u}'", f"sign = '{identity_public(key_of('identity', u)).hex()}'"]
        lines += [f"samples = {samples[u - 1]}"] if samples else []
    return read_agreement("\n".join(lines).encode(), "federation.toml")


def party_of(agreement: Agreement, number: int) -> Party:
    keys = ledger_keys(agreement.hash, key_of("identity", number), number)
    group = SerialGroup(f"site s{number}")
    salts = salt_key(agreement.hash, key_of("identity", number), number)
    return Party(agreement, number, group, agreement.members(), None, keys, MemoryJournal(), salts)


def known(name: str = "test", sites: int = 3, number: int = 1, colluders: int = 1) -> KnownFederation:
    """A federation of sites s1, s2, … as a ledger knows it; the same sites in each."""
    numbers = range(1, sites + 1)
    return KnownFederation(
        key_of("config", name), name, 0, number, colluders,
        tuple(f"s{u}" for u in numbers), tuple(key_of("site", u) for u in numbers),
    )  # fmt: skip


def journal_in(folder: Path, federation: KnownFederation | None = None, **more: Any) -> FileJournal:
    """The ledger of one federation in the home `folder`."""
    return FileJournal(LedgerHome(folder), federation or known(), folder / "run", **more)


def session_of(party: Party, sums: Summing, recovery: Recovery | None = None) -> Session:
    """A session whose other sites are met in sums only."""
    return Session(party, sums, OwnRanks(party), recovery or NeverAway())


class Meeting:
    """N sites whose sums are over those that are not lost in that round."""

    def __init__(
        self, sites: int, samples: tuple[int, ...] = (), rounds: int = 1, **sections: Mapping[str, Any]
    ) -> None:
        self.agreement = agreement_of(sites, samples, rounds, **sections)
        self.numbers = range(1, sites + 1)
        self.lost: dict[int, set[int]] = {}  # masked sum -> sites
        self.plans: list[SumPlan] = []  # of site 1
        self.parts: dict[int, Vector] = {}
        self.opened: dict[int, tuple[str, tuple[int, ...]]] = {}  # masked sum -> what it is, and whose vectors
        self.layouts: dict[int, bytes] = {}  # their hashes in M0
        self.barrier = threading.Barrier(sites, timeout=WAIT_S)
        self.noted: Callable[[SumPlan, Layout], None] = lambda plan, layout: None  # of site 1
        self.interrupt = ("", 0)  # all sites leave in their n-th "open" or "settle", from 0
        self.calls: dict[tuple[str, int], int] = {}

    def session(self, number: int) -> Session:
        party = party_of(self.agreement, number)
        return session_of(party, FakeSums(self, party))

    def run(self, work: Callable[[Session], _T]) -> dict[int, _T]:
        """What `work` gives at each site; the first error of a site is raised."""

        def one(number: int) -> _T:
            try:
                return work(self.session(number))
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(len(self.numbers)) as pool:
            running = {u: pool.submit(one, u) for u in self.numbers}
        errors = [f.exception() for f in running.values() if f.exception() is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            assert error is not None
            raise error
        return {u: f.result() for u, f in running.items()}


class FakeSums(Summing):
    """Summing of one site of a Meeting: encoded, added as integers, decoded; nothing is masked or sent."""

    name = "meeting"
    rails = 1

    def __init__(self, meeting: Meeting, party: Party) -> None:
        self._meeting, self._party = meeting, party

    def open(self, checked: Checked, stages: Stages) -> Summed:
        self._look_up("open")
        meeting, me, plan, vector = self._meeting, self._party.number, checked.plan, checked.vector
        if me == 1:
            meeting.plans.append(plan)
            meeting.noted(plan, vector.layout)
        layout, codec = vector.layout, codec_of(self._party, plan)
        pieces = layout.pieces(0, layout.nbytes)
        kept = vector.buffer.copy()
        for piece in pieces:
            codec.encode(piece.values_in(vector.buffer), piece.lanes_in(vector.buffer), piece)
        mine = Vector(layout)
        mine.buffer[:] = vector.buffer
        meeting.parts[me], meeting.layouts[me] = mine, layout.hash_under(plan.layout_key)
        meeting.barrier.wait()
        members = tuple(u for u in meeting.numbers if u not in meeting.lost.get(plan.round_, ()))
        meeting.opened[plan.round_] = plan.purpose, members
        assert len({meeting.layouts[u] for u in members}) == 1, "the sites sum different layouts"
        vector.buffer[:] = 0
        for u in members:
            for piece in pieces:
                lanes = lanes_of(vector.buffer, piece.start, piece.stop, piece.tensor.bits)
                np.add(lanes, lanes_of(meeting.parts[u].buffer, piece.start, piece.stop, piece.tensor.bits), out=lanes)
        meeting.barrier.wait()  # nobody's part is replaced while another one reads it
        if plan.everyone and len(members) < len(meeting.numbers):
            vector.buffer[:] = kept
            raise RoundOverError(plan.round_, f"round {plan.round_} needs everyone")
        if me not in members:
            vector.buffer[:] = kept
            raise RoundOverError(plan.round_, f"round {plan.round_} ended without site {self._party.name}")
        sum_tree = SHA256.tree(vector.buffer)
        for piece in pieces:
            codec.decode(piece.lanes_in(vector.buffer), piece.values_in(vector.buffer), piece)
        return Summed(sum_tree, layout.nbytes, layout.nbytes, members)

    def settle(self, opened: Opened, state: bytes) -> None:
        """All sites add the same numbers."""
        self._look_up("settle")

    def _look_up(self, kind: str) -> None:
        meeting, key = self._meeting, (kind, self._party.number)
        meeting.calls[key] = meeting.calls.get(key, -1) + 1
        if meeting.interrupt == (kind, meeting.calls[key]):
            raise InterruptedRun(f"left in {kind}", agreed=True)
