"""The relay's side of one attempt, without clock, sockets or files (docs/protocol.md sections 4 and 6).

    propose(M0) · M1 … close_keys() -> U1 · M2 … close_shares() -> U2 · M3, y … close_masked() -> M4 of the relay, Y
    M4 · M5 · M6 … settled()

Sites put their messages into the objects; the caller has authenticated the sender and asks `check_open` before it lets
one in. The caller owns the deadlines and closes a set when it likes: each is formed once and kept, so a relay that
starts again from its objects says the same. A message counts if its form, size, sender and transcript are right: one
that is wrong would have every site refuse the set. Its signature is the sites' business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedhpc.errors import PeersError, PolicyError
from fedhpc.relay.rounds.accumulator import Accumulator
from fedhpc.relay.rounds.attempt_objects import Objects, put_once
from fedhpc.relay.rounds.block_memory import BlockMemory
from fedhpc.relay.rounds.summing import MAX_VECTOR_BYTES, tree_of, tree_of_sum
from fedhpc.secure import messages, transcript_chain
from fedhpc.secure.geometry import Geometry
from fedhpc.secure.messages import Survivors
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, body_bytes, canon, parse_canon
from fedhpc.wire import kinds
from fedhpc.wire.kinds import Kind, Set


@dataclass(frozen=True)
class Audit:
    """What was found of a sum. Copies that are gone are judged by nobody."""

    bad: tuple[int, ...]
    """The sites whose vector, as it is kept here, is not the one that their M3 names."""
    differs: bool
    """Whether Y is not the sum of the vectors of U3 as they are kept here."""


class RoundMachine:
    """One attempt. Made from its objects, it goes on where an earlier one stopped."""

    def __init__(
        self,
        objects: Objects,
        sites: int,
        threshold: int,
        *,
        max_vector_bytes: int = MAX_VECTOR_BYTES,
        memory: BlockMemory | None = None,
    ) -> None:
        """`memory`: what sums lie in while vectors arrive; its own by default."""
        self._objects, self._memory = objects, memory or BlockMemory()
        self._sum: Accumulator | None = None
        self._sites, self._tau = sites, threshold
        self._max_vector_bytes = max_vector_bytes
        self._proposed: Proposal | None = None
        self._sets: dict[str, tuple[int, ...]] = {}
        self._survivors: Survivors | None = None
        self._t: dict[int, bytes] = {}
        self._valid: dict[tuple[str, int], bool] = {}
        self._results: dict[int, bytes] = {}
        self._signed: dict[int, bytes] = {}
        m0 = objects.get(kinds.M0.name)
        if m0 is not None:
            self._begin(m0)

    # --- what the relay says ---

    def propose(self, m0: bytes) -> None:
        """Store M0. Raises PolicyError for another form, or if another M0 is there."""
        self._begin(m0)
        put_once(self._objects, kinds.M0.name, m0)

    def _begin(self, m0: bytes) -> None:
        proposed = messages.read_proposal(m0, self._sites)
        nbytes = Geometry(proposed.tensors).nbytes
        if nbytes > self._max_vector_bytes:
            raise PolicyError(f"a vector of {nbytes} bytes; at most {self._max_vector_bytes}")
        if self._proposed not in (None, proposed):
            raise PolicyError("another M0 is there")
        self._proposed, self.nbytes = proposed, nbytes
        self._t[0] = transcript_chain.t0(m0)

    @property
    def proposed(self) -> Proposal:
        """M0. Raises PeersError before `propose`."""
        if self._proposed is None:
            raise PeersError("no attempt was proposed yet")
        return self._proposed

    @property
    def members(self) -> tuple[int, ...]:
        """The cohort."""
        return tuple(u for u, _ in self.proposed.cohort)

    @property
    def u1(self) -> tuple[int, ...] | None:
        """The sites whose M1 count; None before close_keys."""
        return self._set(kinds.U1)

    @property
    def u2(self) -> tuple[int, ...] | None:
        """The sites whose M2 count; None before close_shares."""
        return self._set(kinds.U2)

    @property
    def survivors(self) -> Survivors | None:
        """The relay's M4; None before close_masked."""
        if self._survivors is None and (data := self._objects.get(kinds.M4R.name)) is not None:
            self._survivors = messages.read_survivors(data, self._sites)
        return self._survivors

    @property
    def u3(self) -> tuple[int, ...] | None:
        """The sites whose vectors are in Y; None before close_masked."""
        return None if self.survivors is None else self.survivors.u3

    # --- what sites said ---

    def check_open(self, name: str, u: int) -> None:
        """Whether site `u` may send a kind of message (or its vector) now.

        Raises PolicyError for a wrong sender or too early, PeersError after the set was closed without it.
        """
        kind = kinds.row(name)
        if kind not in kinds.SENT:
            raise PolicyError(f"there is no message {name!r:.40}")
        before, after = self._between(kind)
        if before is None or u not in self.members:
            raise PolicyError(f"site {u} sent {name}, but is not in the set that may")
        if u not in before or (after is not None and u not in after):
            raise PeersError(f"the {name} of site {u} came after the set was closed without it")

    def set_of(self, which: Set | None) -> tuple[int, ...] | None:
        """The cohort, U1, U2 or U3; None where it is not formed yet, and for None."""
        members: tuple[int, ...] | None = None if which is None else getattr(self, which.value)
        return members

    def _between(self, kind: Kind) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """The set that may send a kind, and the set that it forms."""
        return self.set_of(kind.senders), self.set_of(kind.forms)

    def there(self, kind: Kind) -> tuple[int, ...]:
        """The sites that may send a kind of message and did, in its right form; rising."""
        before, _ = self._between(kind)
        return tuple(u for u in self._senders(kind) if before is not None and u in before and self._counts(kind, u))

    def arrived(self) -> tuple[int, ...]:
        """The sites whose M3 and whole vector are there, of any content."""
        size = self._objects.size
        return tuple(u for u in self.there(kinds.M3) if size(f"{kinds.M3V.name}/{u}") == self.nbytes)

    def whole(self) -> tuple[int, ...]:
        """The sites whose M3 and whole vector are there, the one that M3 names: U3, if it were closed now."""
        return tuple(u for u in self.arrived() if self._is_signed(u))

    def other_vectors(self) -> tuple[int, ...]:
        """The sites whose M3 and whole vector are there, but not the one that M3 names: they count as absent."""
        return tuple(u for u in self.arrived() if not self._is_signed(u))

    def _is_signed(self, u: int) -> bool:
        return self._objects.tree(f"{kinds.M3V.name}/{u}") == self._signed_tree(u)

    def _signed_tree(self, u: int) -> bytes:
        """Tree of the vector that site `u` signed in M3 [32]; the message is there."""
        if u not in self._signed:
            data = self._objects.get(f"{kinds.M3.name}/{u}") or b""
            self._signed[u] = messages.read_masked(parse_canon(data)["body"], str(u)).vector
        return self._signed[u]

    def answered(self) -> tuple[int, ...]:
        """The sites that have bound themselves to open the round over U3 only: those with M5, once τ M4 are there.

        No honest site answers before it has seen τ M4, so an M5 that comes without them binds nobody. In an old attempt
        whose other messages were cleared away those that are left counted before.
        """
        if self.u3 is None:
            return ()
        signed, answered = (
            self.there(kind) if self._is_whole() else tuple(u for u in self._senders(kind) if u in self.u3)
            for kind in (kinds.M4, kinds.M5)
        )
        return answered if len(signed) >= self._tau else ()

    def _is_whole(self) -> bool:
        """Whether the messages are there that the transcripts are made of."""
        names = set(self._objects.names())
        sets = ((kind.name, self.set_of(kind.forms)) for kind in kinds.FORMING)
        return all(members is not None and {f"{n}/{u}" for u in members} <= names for n, members in sets)

    def settled(self) -> tuple[int, ...] | None:
        """The set in the M6 body that τ sites sent; None before."""
        votes: dict[bytes, int] = {}
        for u in self.there(kinds.M6):
            votes[self._results[u]] = votes.get(self._results[u], 0) + 1
        for body, count in votes.items():
            if count >= self._tau:
                return messages.read_result(parse_canon(body), self._sites, "").u3
        return None

    def states(self) -> dict[int, bytes]:
        """The next state that each M6 names, by its sender."""
        there = self.there(kinds.M6)
        return {u: messages.read_result(parse_canon(self._results[u]), self._sites, "").state for u in there}

    def _senders(self, kind: Kind) -> list[int]:
        prefix = kind.name + "/"
        return sorted(int(n[len(prefix) :]) for n in self._objects.names() if n.startswith(prefix))

    def _counts(self, kind: Kind, u: int) -> bool:
        """Whether a message is right; found out once."""
        known = self._valid.get((kind.name, u))
        if known is None:
            data = self._objects.get(f"{kind.name}/{u}")
            if data is None:
                return False
            try:
                self._check(kind, u, data)
                known = True
            except PolicyError:
                known = False
            self._valid[kind.name, u] = known
        return known

    def _check(self, kind: Kind, u: int, data: bytes) -> None:
        """Raise PolicyError unless `data` is what site `u` could have signed in this attempt."""
        message = messages.read_envelope(data, kind.name, u, self._sites)
        if message["t"] != self._transcript(kind).hex():
            raise PolicyError(f"site {u} signed another transcript in {kind.name}")
        body, who = message["body"], str(u)
        if kind is kinds.M1:
            messages.read_keys(body, who)
        elif kind is kinds.M2:
            u1 = self._need(self.u1)
            messages.read_shares(body, u1.index(u), len(u1), who)
        elif kind is kinds.M3:
            self._signed[u] = messages.read_masked(body, who).vector
        elif kind is kinds.M4:
            messages.read_empty(body, kind.name, who)
        elif kind is kinds.M5:
            u3 = self._need(self.u3)
            messages.read_unmask(body, u3.index(u), len(u3), len(self._need(self.u2)), who)
        else:
            messages.read_result(body, self._sites, who)
            self._results[u] = canon(body)

    def _transcript(self, kind: Kind) -> bytes:
        """The link of T0 to T3 that a kind of message signs."""
        return self._hash(self._need(kind.signs.link))

    def _hash(self, n: int) -> bytes:
        """T0 to T3 of docs/protocol.md section 4, from the messages of the sets."""
        if n not in self._t:
            kind = kinds.FORMING[n - 1]
            bodies = {u: self._body(f"{kind.name}/{u}") for u in self._need(self.set_of(kind.forms))}
            if n == 3:
                self._t[n] = transcript_chain.t3(self._hash(2), bodies, self._need(self.survivors).sum_)
            else:
                self._t[n] = (transcript_chain.t1 if n == 1 else transcript_chain.t2)(self._hash(n - 1), bodies)
        return self._t[n]

    def _body(self, name: str) -> bytes:
        """canon(body) of a message."""
        data = self._objects.get(name)
        if data is None:
            raise PolicyError(f"{name} was cleared away")  # by a relay that was killed since
        return body_bytes(data, parse_canon(data))

    def _need(self, value: Any) -> Any:
        if value is None:
            raise PeersError("the set is still open")
        return value

    # --- sets, formed once when the caller's deadline is over ---

    def close_keys(self) -> tuple[int, ...]:
        """U1: the sites whose M1 arrived. Raises PeersError for fewer than τ."""
        return self._close(kinds.U1, kinds.M1)

    def close_shares(self) -> tuple[int, ...]:
        """U2: the sites of U1 whose M2 arrived. Raises PeersError for fewer than τ."""
        return self._close(kinds.U2, kinds.M2)

    def close_masked(self) -> Survivors:
        """The relay's M4 over U3, the sites whose M3 and whole vector arrived; Y is complete. Once per attempt.

        Takes as long as reading all vectors does. Raises PeersError for fewer than τ.
        """
        if self.survivors is not None:
            return self.survivors
        u3 = self.whole()
        self._check_size("U3", u3)
        tree = self._accumulator().finish(u3)
        self._objects.keep(kinds.Y.name, tree)
        survivors = Survivors(tree, u3)
        put_once(self._objects, kinds.M4R.name, survivors.to_bytes())
        self._survivors = survivors
        self.let_go()
        return survivors

    def arriving(self) -> Accumulator | None:
        """What adds the blocks of vectors as they arrive; None before and after, and for vectors of one block."""
        if self.u2 is None or self.survivors is not None or self.nbytes <= TREE_BLOCK_BYTES:
            return None
        return self._accumulator()

    def _accumulator(self) -> Accumulator:
        if self._sum is None:
            self._sum = Accumulator(self._objects, self.proposed.tensors, self._need(self.u2), self._memory)
        return self._sum

    def let_go(self) -> None:
        """Give the memory back that the sum lay in, and what was written of one that is not kept."""
        self.stop_adding()
        self._objects.unmake(kinds.Y.name)

    def stop_adding(self) -> None:
        """Give the memory back. What is closed later reads the copies."""
        if self._sum is not None:
            self._sum.close()
            self._sum = None

    def audit(self) -> Audit:
        """Look whether Y is the sum of what the sites of U3 signed. Reads all their vectors, twice."""
        survivors: Survivors = self._need(self.survivors)
        names = {u: f"{kinds.M3V.name}/{u}" for u in survivors.u3}
        kept = [u for u, name in names.items() if self._objects.size(name) == self.nbytes]
        bad = tuple(u for u in kept if tree_of(self._objects, names[u]) != self._signed_tree(u))
        if len(kept) < len(names):
            return Audit(bad, False)
        return Audit(bad, tree_of_sum(self._objects, [*names.values()], self.proposed.tensors) != survivors.sum_)

    def _close(self, closed: Kind, by: Kind) -> tuple[int, ...]:
        there = self._set(closed)
        if there is not None:
            return there
        found = self.there(by)
        self._check_size(closed.name, found)
        put_once(self._objects, closed.name, canon(list(found)))
        return found

    def _check_size(self, name: str, found: tuple[int, ...]) -> None:
        if len(found) < self._tau:
            raise PeersError(f"{name} has {len(found)} sites; {self._tau} are needed", "a new attempt is started")

    def _set(self, kind: Kind) -> tuple[int, ...] | None:
        if kind.name not in self._sets and (data := self._objects.get(kind.name)) is not None:
            self._sets[kind.name] = tuple(parse_canon(data))
        return self._sets.get(kind.name)


def opened_set(attempts: Iterable[RoundMachine]) -> RoundMachine | None:
    """The attempt of a round whose set the round can still open over: the one most sites have bound themselves to.

    None: no site has answered in any of them, and the round may open over any set.
    """
    bound: dict[tuple[int, ...], set[int]] = {}
    first: dict[tuple[int, ...], RoundMachine] = {}
    for attempt in attempts:
        if attempt.u3 is not None and attempt.answered():
            bound.setdefault(attempt.u3, set()).update(attempt.answered())
            first.setdefault(attempt.u3, attempt)
    return first[max(bound, key=lambda u3: len(bound[u3]))] if bound else None
