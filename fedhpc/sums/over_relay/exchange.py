"""The exchange through a relay: what sites say to each other as named objects (docs/relay-rounds.md).

It moves opaque messages and knows neither keys nor models. Only a site's leader uses it; vectors are moved by every
rank with its own Transport.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedhpc.errors import FedhpcError, InterruptedRun, PeersError
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.listing import Entry
from fedhpc.transport.transport import Transport
from fedhpc.wire.object_names import ObjectName

POLL_S = 20.0  # of one long poll; proxies cut silent connections after a minute
_AT_ONCE = 8  # messages fetched at the same time
_LOOK_S = 0.25  # how often a wait looks whether it is to end
_LEAVE_S = 5.0
_CLOSED = ("round-over", "too-late")

Until = tuple[str, int]
"""(kind, count): wait for so many objects of a kind."""
_Answer = tuple[list[Entry], str]


class TooLateError(PeersError):
    """The relay no longer takes this: the set was closed, or the round is over. `kind` says which."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@contextlib.contextmanager
def too_late() -> Iterator[None]:
    """Turn the relay's refusals of what has been closed into TooLateError."""
    try:
        yield
    except RelayProblem as problem:
        if problem.kind in _CLOSED:
            raise TooLateError(problem.kind, problem.what) from None
        raise


def _silent() -> str:
    return ""


@dataclass(frozen=True)
class Interrupts:
    """When to leave although something is waited for: each says why, or "" to go on."""

    idle: Callable[[], str] = _silent
    """Where nobody waits for this site: in the lobby of a round, and while it catches up."""
    busy: Callable[[], str] = _silent
    """Within an attempt, which others lose if this site leaves."""
    wait_s: float | None = None
    """How long to stay in a lobby; None: as agreed."""


class RelayExchange:
    """One site's place among the objects of one federation."""

    def __init__(self, client: Transport, config: bytes, me: int, place: str = "") -> None:
        """`config`: SHA-256 of federation.toml [32]. `me`: this site's number. `place`: the relay's host:port."""
        self.client, self.me = client, me
        self.at = f" (relay {place})" if place else ""
        """For the end of a sentence that says what is waited for."""
        self.interrupts = Interrupts()
        self.turns = 0
        """Answers of the relay that were waited for one after the other: round trips that lie in line."""
        self._config = config.hex()
        self._lock = threading.Lock()

    def turn(self) -> None:
        """One more answer that was waited for. From any thread."""
        with self._lock:
            self.turns += 1

    def name(self, round_: int, attempt: int, name: str) -> ObjectName:
        """The full name of an object."""
        return ObjectName(self._config, round_, attempt, name)

    def put(self, round_: int, attempt: int, kind: str, data: bytes, *, to: int = 0) -> None:
        """Store this site's `kind`, for site `to` where it is for one only.

        Raises TooLateError where the relay has gone on without it.
        """
        name = f"{kind}/{self.me}/{to}" if to else f"{kind}/{self.me}"
        with too_late():
            self.client.put(self.name(round_, attempt, name), data)

    def leave(self, round_: int) -> None:
        """Tell the relay that this site is no longer ready for a round. A hint, which must not cost much time."""

        def send() -> None:
            with contextlib.suppress(FedhpcError, OSError):
                self.put(round_, 0, "LEAVE", b"{}")

        thread = threading.Thread(target=send, name="leave", daemon=True)
        thread.start()
        thread.join(_LEAVE_S)

    def watch(self, round_: int, attempt: int) -> Watch:
        """What comes under an attempt; attempt 0 is the lobby of the round."""
        return Watch(self, round_, attempt)

    def listing(
        self, round_: int, attempt: int, after: str, wait_s: float, until: Until | None = None
    ) -> tuple[list[Entry], str]:
        """What came after the cursor `after`, and the next cursor. See Transport.listing. Raises TooLateError."""
        with too_late():
            return self.client.listing(self._config, round_, attempt, after, wait_s, until)

    def standing(self, *, quiet: bool = False) -> dict[str, Any]:
        """Where the relay says that the federation stands: hints. `quiet`: that is no sign that this site runs."""
        return self.client.get_json(f"/v1/federations/{self._config}" + ("?quiet" if quiet else ""))


def objects_of(standing: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in the list `name` of what the relay says; none if it has another form."""
    found = standing.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


class Watch:
    """The objects of one attempt, as they come, with the messages among them."""

    def __init__(self, exchange: RelayExchange, round_: int, attempt: int) -> None:
        self._exchange, self._round, self._attempt = exchange, round_, attempt
        self._cursor = ""
        self._names: set[str] = set()
        self._bodies: dict[str, bytes] = {}
        self._coming: _Coming | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def names(self) -> Iterable[str]:
        """All names seen so far."""
        return self._names

    def sites(self, kind: str) -> tuple[int, ...]:
        """The sites whose `kind` is there, rising."""
        named = (name.split("/") for name in self._names)
        return tuple(sorted(int(parts[1]) for parts in named if parts[0] == kind and len(parts) == 2))

    def ahead(self, kind: str, count: int = 1) -> None:
        """Begin to wait for `count` objects of `kind` at once, on a connection of its own; `wait` takes up the answer.

        A message that is sent then and the answer to it cost one round trip together. Nothing is asked if
        they are known already: a site that was killed repeats messages whose answers are there.
        """
        if self._coming is None and self._known(kind) < count:
            self._coming = _Coming(self._asking((kind, count), POLL_S))

    def wait(
        self, seen: Callable[[Watch], bool], deadline: float, poll_s: float = POLL_S, until: Until | None = None
    ) -> bool:
        """Until `seen(self)`, at the latest until `deadline` (time.monotonic); whether it was seen.

        `until`: (kind, count) without which `seen` cannot be: the relay answers when so many are there, or when it has
        gone on (NEXT, DONE, A1, …), and not for each object before that.
        """
        while not seen(self):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._coming is None:
                self._coming = _Coming(self._asking(until, min(poll_s, left)))
            if not self._coming.ended.wait(min(left, _LOOK_S)):
                self._look_up()
                continue
            coming, self._coming = self._coming, None
            found, self._cursor = coming.answer()
            self._exchange.turn()
            self._names.update(entry.name for entry in found)
            self._bodies.update((entry.name, entry.body) for entry in found if entry.body is not None)
        return True

    def _look_up(self) -> None:
        """Raise InterruptedRun if this site is to leave. Attempt 0 is a lobby, round 0 the catching up."""
        interrupts = self._exchange.interrupts
        why = interrupts.busy() if self._round and self._attempt else interrupts.idle()
        if why:
            raise InterruptedRun(f"left while it waited for other sites: {why}")

    def _asking(self, until: Until | None, wait_s: float) -> Callable[[], _Answer]:
        """What is to be asked in another thread. What is known so far is looked at in this one, which changes it."""
        if until is not None:
            kind, count = until
            until = kind, max(count, self._known(kind) + 1)  # those that are known were not enough
        return partial(self._exchange.listing, self._round, self._attempt, self._cursor, wait_s, until)

    def _known(self, kind: str) -> int:
        return sum(name.split("/")[0] == kind for name in self._names)

    def body(self, name: str) -> bytes:
        """The object `name`, which has been seen. Raises PeersError if the relay no longer has it, or TooLateError."""
        if name not in self._bodies:
            self._exchange.turn()
            with too_late():
                data = self._exchange.client.get(self._exchange.name(self._round, self._attempt, name))
            if data is None:
                raise PeersError(f"the relay has lost {name} of round {self._round}", "it was there before")
            self._bodies[name] = data
        return self._bodies[name]

    def messages(self, kind: str, sites: Iterable[int]) -> dict[int, bytes]:
        """The messages `kind` of `sites`, all of which have been seen."""
        names = {u: f"{kind}/{u}" for u in sites}
        missing = [name for name in names.values() if name not in self._bodies]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(_AT_ONCE, len(missing))) as pool:
                list(pool.map(self.body, missing))
        return {u: self.body(name) for u, name in names.items()}


class _Coming:
    """A listing that was asked for ahead, in a thread of its own. Nobody has to wait for its end."""

    def __init__(self, ask: Callable[[], _Answer]) -> None:
        self._ask = ask
        self._answer: _Answer | None = None
        self._error: BaseException | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._run, name="relay poll", daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except BaseException as error:  # raised where the answer is taken up
            self._error = error
        self.ended.set()

    def answer(self) -> _Answer:
        """What `ask` gave, after `ended`; or raises what it raised."""
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer
