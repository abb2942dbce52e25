"""How the leaders of one job come to the mask keys of a sum: one agreement, then a step of the ratchet for each sum.

A message that begins a sum says in its first byte whether its site goes on with the keys that it has, or has none. If
one has none, all make new ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from fedhpc.errors import InternalError, PolicyError
from fedhpc.federation.party import Party
from fedhpc.secure.pairwise import PairwiseAttempt, refuse_difference
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.ratchet import Ratchet
from fedhpc.sums.in_job.exchange import Exchange
from fedhpc.sums.streams import Streams

_KEYS, _STEP = b"K", b"S"  # first byte of what begins a sum
_T0_BYTES = 32
_SAME_CALLS = "every site makes the same calls: is one loop shorter, or did a script end early?"


class JobKeys:
    """The keys of one leader. They are in the memory of one process, which made them after its last fork."""

    def __init__(self, party: Party, exchange: Exchange) -> None:
        self._party, self._exchange = party, exchange
        self._ratchet: Ratchet | None = None
        self._process = 0  # that made the ratchet
        self._signed: tuple[bytes, tuple[bytes, ...]] = (b"", ())  # the newest state that all signed, and how
        self.sent = 0
        """Bytes of messages so far."""

    def streams(self, proposal: Proposal) -> Streams:
        """The mask keys of one sum, with their signs, once every site has proven that it proposes the same.

        Raises PolicyError where one does not, or where its MAC or signature does not hold. The caller calls `end` after
        whatever goes wrong from here on until the sum is settled.
        """
        m0 = proposal.to_bytes()
        ratchet, ready = self._step(m0) or self._agree(proposal, m0)
        ratchet.receive_ready(ready)
        return ratchet.edges()

    def settled(self, state: bytes, sum_tree: bytes) -> None:
        """All sites said that they hold one sum and go on to `state` [32].

        `sum_tree`: Tree(X) [32], or empty where M6 does not name it.
        """
        self._held().settled(state, sum_tree)

    def sign_state(self, state: bytes) -> tuple[bytes, ...]:
        """M6 of every site over `state` [32] and all sums up to the newest, in roster order; the keys end with that.

        Empty where no sum led to it in this job. Raises PolicyError that names a site whose result differs.
        """
        ratchet = self._ratchet
        if ratchet is not None and ratchet.settled_result:
            try:
                said = self._say(ratchet.sign_result(state))
                ratchet.receive_results(said, state)
            finally:
                self.end()
            self._signed = state, tuple(said)
        return self._signed[1] if self._signed[0] == state else ()

    def last_word(self) -> bytes:
        """This site's signature over all sums that are not signed yet; empty without any."""
        ratchet = self._ratchet
        return ratchet.sign_result() if ratchet is not None and ratchet.settled_result else b""

    def receive_last_words(self, said: Sequence[bytes]) -> None:
        """What every site said at the end. Raises PolicyError that names a site that did not sign what this one did."""
        ratchet = self._ratchet
        try:
            if ratchet is not None and ratchet.settled_result:
                ratchet.receive_results(said)
        finally:
            self.end()

    def end(self) -> None:
        """The next sum makes new keys."""
        if self._ratchet is not None:
            self._ratchet.wipe()
            self._ratchet = None

    def _step(self, m0: bytes) -> tuple[Ratchet, list[bytes]] | None:
        """Begin a sum with the keys there are, up to what each site says to the MACs of all; None if one has none."""
        ratchet = self._ratchet
        if ratchet is None or not ratchet.usable or self._process != os.getpid():
            self.end()
            return None
        said = self._begin(_STEP + ratchet.propose(m0))
        if any(message[:1] == _KEYS for message in said):
            self.end()
            return None
        messages = [message[1:] for message in said]
        self._refuse_difference(m0, messages)
        return ratchet, self._answer(lambda: ratchet.receive_proposals(messages))

    def _agree(self, proposal: Proposal, m0: bytes) -> tuple[Ratchet, list[bytes]]:
        """Agree on new keys for this sum and those after it, up to what each site says to the signatures of all."""
        party = self._party
        identity = party.identity
        assert identity is not None
        attempt = PairwiseAttempt(proposal, party.number, identity, party.members)
        said = self._begin(_KEYS + attempt.keys())
        if any(message[:1] == _STEP for message in said):  # those sites make new keys now
            said = self._begin(_KEYS + attempt.keys())
            if any(message[:1] == _STEP for message in said):
                raise PolicyError("a site goes on with keys that another one does not have", "the sum is refused")
        messages = [message[1:] for message in said]
        self._refuse_difference(m0, messages)
        signatures = self._answer(lambda: attempt.receive_keys(messages))

        def signed() -> bytes:
            attempt.receive_signatures(signatures)
            degree = party.agreement.secure.degree
            made = Ratchet(party.number, identity, party.members, attempt.t2, attempt.chains(), degree=degree)
            self._ratchet, self._process = made, os.getpid()
            return made.first(m0)

        ready = self._answer(signed)
        return self._held(), ready

    def _held(self) -> Ratchet:
        if self._ratchet is None:
            raise InternalError("the keys of a sum are gone before its end")
        return self._ratchet

    def _refuse_difference(self, m0: bytes, messages: Sequence[bytes]) -> None:
        """Raise PolicyError that names a site and what it proposes, if a T0 differs: each message begins with one."""
        if len({message[:_T0_BYTES] for message in messages}) > 1:
            refuse_difference(m0, self._say(m0), self._party.members)
            raise InternalError("proposals differ, yet no field does")

    def _begin(self, message: bytes) -> list[bytes]:
        """What every site says at the beginning of a sum."""
        said = self._say(message)
        for member, other in zip(self._party.members, said, strict=True):
            if other[:1] not in (_KEYS, _STEP):
                raise PolicyError(f"site {member.name} does not begin a sum where others do", _SAME_CALLS)
        return said

    def _answer(self, make: Callable[[], bytes]) -> list[bytes]:
        """What every site says next. One that refuses says nothing, so that all refuse this sum together."""
        try:
            word = make()
        except PolicyError:
            self._say(b"")
            raise
        return self._say(word)

    def _say(self, message: bytes) -> list[bytes]:
        self.sent += len(message)
        return self._exchange.gather(message)
