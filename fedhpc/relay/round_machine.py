"""The relay's side of one attempt, without clock, sockets or files (docs/protocol.md sections 4 and 6).

    propose(M0) · put(M1) … close_keys() -> U1 · put(M2) … close_shares() -> U2
    put(M3), put_vector(y) … close_masked() -> M4 of the relay, Y · put(M4) · put(M5) · put(M6)

The caller owns the deadlines and closes a set when it likes: each is formed once and kept, so a relay that starts again
from its objects says the same. Messages are opaque here: their form, size and sender are checked, their signatures are
the sites' business. Whoever calls put has authenticated the sender.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedhpc.errors import PeersError, PolicyError
from fedhpc.relay.objects import SUM, VECTOR, Objects, put_once
from fedhpc.relay.summing import VectorSum
from fedhpc.secure import labels, messages
from fedhpc.secure.messages import Survivors
from fedhpc.secure.transcript import canon, parse_canon

MAX_CHUNK_BYTES = 16 << 20

_KINDS = (
    labels.SIGN_KEYS,
    labels.SIGN_SHARES,
    labels.SIGN_MASKED,
    labels.SIGN_SURVIVORS,
    labels.SIGN_UNMASK,
    labels.SIGN_RESULT,
)


class RoundMachine:
    """One attempt. Made from its objects, it goes on where an earlier one stopped."""

    def __init__(self, objects: Objects, sites: int, threshold: int, *, max_vector_bytes: int = 1 << 40) -> None:
        self._objects = objects
        self._sites, self._tau = sites, threshold
        self._max_vector_bytes = max_vector_bytes
        self._total: VectorSum | None = None
        self._members: tuple[int, ...] = ()
        m0 = objects.get("M0")
        if m0 is not None:
            self._begin(m0)

    # --- what the relay says ---

    def propose(self, m0: bytes) -> None:
        """Store M0. Raises PolicyError for another form, or if another M0 is there."""
        messages.read_proposal(m0, self._sites)
        put_once(self._objects, "M0", m0)
        self._begin(m0)

    def _begin(self, m0: bytes) -> None:
        proposed = messages.read_proposal(m0, self._sites)
        self._total = VectorSum(self._objects, proposed.tensors)
        if self._total.nbytes > self._max_vector_bytes:
            raise PolicyError(f"a vector of {self._total.nbytes} bytes; at most {self._max_vector_bytes}")
        self._members = tuple(u for u, _ in proposed.cohort)

    @property
    def m0(self) -> bytes | None:
        """The proposal."""
        return self._objects.get("M0")

    @property
    def u1(self) -> tuple[int, ...] | None:
        """The sites whose M1 count; None before close_keys."""
        return self._set("U1")

    @property
    def u2(self) -> tuple[int, ...] | None:
        """The sites whose M2 count; None before close_shares."""
        return self._set("U2")

    @property
    def survivors(self) -> bytes | None:
        """The relay's M4; None before close_masked."""
        return self._objects.get("M4r")

    @property
    def u3(self) -> tuple[int, ...] | None:
        """The sites whose vectors are in Y; None before close_masked."""
        data = self.survivors
        return None if data is None else messages.read_survivors(data, self._sites).u3

    @property
    def opened(self) -> tuple[int, ...] | None:
        """U3 if any site answered over it, else None: a later attempt of the round can open over this set only."""
        return self.u3 if self.there(labels.SIGN_UNMASK) else None

    def there(self, name: str) -> tuple[int, ...]:
        """The sites whose message of a kind has arrived, rising."""
        prefix = name + "/"
        return tuple(sorted(int(n[len(prefix) :]) for n in self._objects.names() if n.startswith(prefix)))

    def messages(self, name: str) -> dict[int, bytes]:
        """The messages of a kind that sites may see: of the set, once it was formed; M4, M5 and M6 as they come."""
        of = {labels.SIGN_KEYS: self.u1, labels.SIGN_SHARES: self.u2, labels.SIGN_MASKED: self.u3}
        found = of.get(name, self.there(name))
        if found is None:
            raise PeersError(f"the set of {name} is still open")
        return {u: data for u in found if (data := self._objects.get(f"{name}/{u}")) is not None}

    def sum_chunk(self, offset: int, count: int) -> bytes:
        """Bytes of Y. Raises PeersError before the relay's M4 is there."""
        if self.survivors is None:
            raise PeersError("the sum is not there yet")
        total = self._begun()
        if not 0 <= offset <= total.nbytes or not 0 <= count <= MAX_CHUNK_BYTES:
            raise PolicyError(f"{count} bytes from {offset} of a sum of {total.nbytes} bytes")
        return self._objects.read(SUM, offset, min(count, total.nbytes - offset))

    # --- what sites send ---

    def put(self, name: str, u: int, data: bytes) -> None:
        """Store a signed message of site `u`. Raises PolicyError for a wrong form, sender or time, or a second one."""
        self._begun()
        if name not in _KINDS:
            raise PolicyError(f"there is no message {name!r:.40}")
        messages.check_length(data, name, self._sites, f"the {name} message of site {u}")
        _check_envelope(data, name, u)
        before = {
            labels.SIGN_KEYS: self._members,
            labels.SIGN_SHARES: self.u1,
            labels.SIGN_MASKED: self.u2,
        }.get(name, self.u3)
        if before is None or u not in before:
            raise PolicyError(f"site {u} sent {name}, but is not in the set that may")
        closed = {labels.SIGN_KEYS: self.u1, labels.SIGN_SHARES: self.u2, labels.SIGN_MASKED: self.u3}.get(name)
        if closed is not None and u not in closed:
            raise PeersError(f"the {name} message of site {u} came after the set was closed")
        put_once(self._objects, f"{name}/{u}", data)
        if name == labels.SIGN_MASKED:
            self._add_if_whole(u)

    def put_vector(self, u: int, offset: int, data: bytes) -> int:
        """Bytes of the masked vector of site `u` from `offset`; gives how many bytes are there.

        An upload resumes at `vector_size`. Raises PolicyError for a gap, other bytes over ones that are there, and
        bytes past the vector's end; PeersError once the set is closed.
        """
        total = self._begun()
        if self.u2 is None or u not in self.u2:
            raise PolicyError(f"site {u} sent a vector, but is not in U2")
        if self.survivors is not None:
            raise PeersError(f"the vector of site {u} came after the set was closed")
        name, there = f"{VECTOR}/{u}", self.vector_size(u)
        if len(data) > MAX_CHUNK_BYTES or not 0 <= offset <= there or offset + len(data) > total.nbytes:
            raise PolicyError(f"{len(data)} bytes from {offset} of the vector of site {u}, of which {there} are there")
        known = min(there - offset, len(data))
        if self._objects.read(name, offset, known) != data[:known]:
            raise PolicyError(f"site {u} sent other bytes than before for its vector", "an object is written once")
        if known < len(data):
            self._objects.write(name, there, data[known:])
        self._add_if_whole(u)
        return self.vector_size(u)

    def vector_size(self, u: int) -> int:
        """How many bytes of the vector of site `u` are there."""
        return self._objects.size(f"{VECTOR}/{u}")

    # --- sets, formed once when the caller's deadline is over ---

    def close_keys(self) -> tuple[int, ...]:
        """U1: the sites whose M1 arrived. Raises PeersError for fewer than τ."""
        return self._close("U1", self.there(labels.SIGN_KEYS))

    def close_shares(self) -> tuple[int, ...]:
        """U2: the sites of U1 whose M2 arrived. Raises PeersError for fewer than τ."""
        return self._close("U2", self.there(labels.SIGN_SHARES))

    def close_masked(self) -> bytes:
        """The relay's M4 over U3, the sites whose M3 and whole vector arrived; Y is complete. Once per attempt."""
        there = self.survivors
        if there is not None:
            return there
        total = self._begun()
        u3 = self.whole()
        self._check_size("U3", u3)
        total_names = {f"{VECTOR}/{u}" for u in u3}
        for name in sorted(total_names - set(total.added)):
            total.add(name)
        survivors = Survivors(total.tree(), u3).to_bytes()
        put_once(self._objects, "M4r", survivors)
        return survivors

    def whole(self) -> tuple[int, ...]:
        """The sites whose M3 and whole vector are there: U3, if it were closed now."""
        nbytes = self._begun().nbytes
        return tuple(u for u in self.there(labels.SIGN_MASKED) if self.vector_size(u) == nbytes)

    def _close(self, name: str, found: tuple[int, ...]) -> tuple[int, ...]:
        there = self._set(name)
        if there is not None:
            return there
        self._begun()
        self._check_size(name, found)
        put_once(self._objects, name, canon(list(found)))
        return found

    def _check_size(self, name: str, found: tuple[int, ...]) -> None:
        if len(found) < self._tau:
            raise PeersError(f"{name} has {len(found)} sites; {self._tau} are needed", "a new attempt is started")

    def _set(self, name: str) -> tuple[int, ...] | None:
        data = self._objects.get(name)
        return None if data is None else tuple(parse_canon(data))

    def _begun(self) -> VectorSum:
        if self._total is None:
            raise PeersError("no attempt was proposed yet")
        return self._total

    def _add_if_whole(self, u: int) -> None:
        total, name = self._begun(), f"{VECTOR}/{u}"
        if self.survivors is None and name not in total.added and u in self.whole():
            total.add(name)


def _check_envelope(data: bytes, name: str, u: int) -> None:
    """The form of a signed message and its sender; not its signature. Raises PolicyError."""
    try:
        message = parse_canon(data)
    except ValueError as error:
        raise PolicyError(f"the {name} message of site {u} is malformed: {error}") from None
    if not isinstance(message, dict) or sorted(message) != ["body", "from", "name", "sig", "t"]:
        raise PolicyError(f"the {name} message of site {u} does not have the fields of a message")
    if message["name"] != name or message["from"] != u:
        raise PolicyError(f"site {u} sent a message that is not its own {name}")


def next_cohort(attempts: Iterable[RoundMachine], ready: Iterable[int]) -> tuple[int, ...]:
    """Whom to propose next in a round: the set that any earlier attempt was answered over, else all who are ready."""
    for attempt in attempts:
        opened = attempt.opened
        if opened is not None:
            return opened
    return tuple(sorted(ready))
