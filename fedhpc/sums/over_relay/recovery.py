"""A site that was away, or helps one that was: over a relay rounds end without a site that does not come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.errors import FedhpcError, InternalError, InterruptedRun
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.held_stream import HeldStream
from fedhpc.federation.other_sites import CaughtUp
from fedhpc.federation.party import Party
from fedhpc.mpi.byte_moves import Read
from fedhpc.secure import labels
from fedhpc.secure.catch_up_messages import CommonKnowledge
from fedhpc.secure.transcript import input_hash, u64
from fedhpc.sums.over_relay.catch_up import Attendant, release_input, take
from fedhpc.sums.over_relay.lead import Lead
from fedhpc.sums.over_relay.orders import Order, end_if_stopped, stop_site
from fedhpc.sums.over_relay.standing_aside import StandingAside
from fedhpc.sums.unconnected import NeverAway


class RelayRecovery(NeverAway):
    """A site goes on from its own newest round; that of the others is found by catching up."""

    def __init__(self, party: Party, lead: Lead | None) -> None:
        """`lead`: at the leader."""
        self._party, self._lead = party, lead
        self._attendant: Attendant | None = None

    @property
    def serves(self) -> bool:
        """Whether this program has checkpoints to give, and can take one; a script of sums has none. At the leader."""
        return self._attendant is not None

    @override
    def serve_catch_up(self, store: CheckpointStore) -> None:
        assert self._lead is not None
        assert self._party.identity is not None
        lead = self._lead
        self._attendant = Attendant(self._known(lead, 0), lead.exchange, self._party.identity, lead.finished)
        self._attendant.start(store)

    @override
    def catch_up(self, state: bytes, round_: int, into: HeldStream) -> CaughtUp:
        """An input of this site in the round that ended without it is free again."""
        site, lead = self._party.site, self._lead
        word = b""
        if lead is not None:
            word = self._take(lead, state, round_, into)
        while (said := site.await_bytes(word or None)) == Order.TAKE:  # what a giver gives, which may be wrong
            into.from_leader(_nothing)
            into.tree(self._party.agreement.secure.tree)
        end_if_stopped(said)
        return CaughtUp(int.from_bytes(said[2:], "little"), whole=said[1:2] == b"\1")

    def _take(self, lead: Lead, state: bytes, round_: int, into: HeldStream) -> bytes:
        """The leader's part; the other ranks get theirs of the state by its orders. What it tells them at the end."""
        site = self._party.site
        assert self._party.identity is not None

        def receive(read: Read) -> bytes:
            site.await_bytes(Order.TAKE)
            reader = _Once(read)
            into.from_leader(reader.read)
            tree = into.tree(self._party.agreement.secure.tree)
            if reader.failed is not None:
                raise reader.failed
            return tree

        deadline_s = self._party.agreement.cohort.deadline_s
        try:
            known = self._known(lead, into.nbytes)
            look = StandingAside(self._party, lead.exchange, lead.thresholds).look
            caught = take(known, lead.exchange, self._party.identity, state, round_, deadline_s, receive, look)
        except InterruptedRun as stopped:
            stop_site(site, stopped)
        lead.finished.keep_proof(caught.round_, caught.settled.proof)
        release_input(self._party, lead.files, caught)
        lead.states.reached(caught.round_, caught.state)
        whole = len(caught.settled.u3) == len(self._party.members)
        return Order.DONE + bytes([whole]) + u64(caught.round_)

    @override
    def is_free(self, base: bytes) -> bool:
        taken = b""
        if self._party.leads:
            assert self._party.journal is not None
            taken = b"\1" if self._party.journal.ledger.round_of(input_hash(labels.PURPOSE_TRAIN, base)) else b"\0"
        return self._party.site.await_bytes(taken or None) == b"\0"

    @override
    def leave(self) -> None:
        if self._attendant is not None:
            self._attendant.stop()

    def _known(self, lead: Lead, nbytes: int) -> CommonKnowledge:
        return CommonKnowledge(self._party.agreement.hash, self._party.members, lead.thresholds, nbytes)


class _Once:
    """Reads until that fails, and nothing more then: the other ranks of the site wait for all windows."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.failed: FedhpcError | None = None

    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        if self.failed is None:
            try:
                self._read(start, stop, into)
            except FedhpcError as error:
                self.failed = error


def _nothing(start: int, stop: int, into: NDArray[np.uint8]) -> None:
    raise InternalError("a rank that does not lead has nothing to give")
