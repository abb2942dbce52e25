"""Who may have a connection: a share for each key, a share for strangers, and places kept for where sites come from.

Until its handshake is over a connection may be anybody's, so nobody is turned away at the door: who comes in makes the
oldest unfinished handshake leave instead (then the oldest of those that have shown no known key), that of the address
that holds most. Honest handshakes take a few round trips; silent connections are what is old. An address from which a
known key came in the last day uses a reserve, which strangers from elsewhere cannot fill.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedhpc.relay.settings import Limits

RECENT_S = 86400.0
MAX_PLACES = 4096  # addresses that are remembered; only known keys make one
_LEAVE_S = 0.5  # how long the door waits for one that must leave, so that threads do not pile up
_V6_NETWORK = 64  # bits: what one customer of a provider gets


@dataclass(eq=False)
class Ticket:
    """One connection. `pin`: the known key that it has shown, else None."""

    place: str
    reserved: bool  # it came from where a known key came from lately
    sock: socket.socket | None  # None: it is about to be closed and must not be touched
    pin: bytes | None = None
    shaken: bool = False  # the handshake is over
    evicted: bool = False
    gone: bool = False


class Census:
    """All connections of a relay. Thread-safe; `clock` in seconds."""

    def __init__(
        self, limits: Limits, evicted: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`evicted` is told of each connection that has to leave."""
        self._limits, self._tell, self._clock = limits, evicted, clock
        self._changed = threading.Condition()
        self._guests: dict[Ticket, None] = {}  # without a known key and not evicted, oldest first
        self._pins: Counter[bytes] = Counter()
        self._recent: dict[str, float] = {}  # place -> when a known key was there, oldest first
        self._total = 0

    def enter(self, address: str, sock: socket.socket) -> Ticket | None:
        """A connection from `address`, which may end another one; None: there is no room at all."""
        where = place(address)
        with self._changed:
            reserved = self._clock() - self._recent.get(where, -RECENT_S) < RECENT_S
            if victim := self._in_the_way(where, reserved=reserved):
                self._evict(victim)
                self._changed.wait_for(lambda: victim.gone, _LEAVE_S)
            if self._total >= self._limits.connections:
                return None
            ticket = Ticket(where, reserved, sock)
            self._guests[ticket] = None
            self._total += 1
            return ticket

    def holds(self, ticket: Ticket, sock: socket.socket | None) -> None:
        """The connection's socket is another object from now on; None: it is about to be closed."""
        with self._changed:
            ticket.sock = sock
            if ticket.evicted:
                _hang_up(ticket)

    def shaken(self, ticket: Ticket) -> None:
        """The handshake is over."""
        with self._changed:
            ticket.shaken = True

    def prove(self, ticket: Ticket, pin: bytes, keys: int) -> bool:
        """The connection has shown one of `keys` known keys; False if that has its share of connections."""
        with self._changed:
            self._remember(ticket.place)
            mine, all_ = self._pins[pin], self._pins.total()
            room = self._limits.of_sites
            share = max(1, room // max(1, keys))
            crowded = all_ >= room or (4 * all_ >= 3 * room and mine >= share)  # the last quarter is for those with few
            if ticket.evicted or crowded or mine >= self._limits.connections_per_site:
                return False
            ticket.pin = pin
            self._pins[pin] += 1
            self._guests.pop(ticket, None)
            return True

    def leave(self, ticket: Ticket) -> None:
        """The connection is closed."""
        with self._changed:
            self._guests.pop(ticket, None)
            if ticket.pin is not None:
                self._remember(ticket.place)
                self._pins[ticket.pin] -= 1
                if not self._pins[ticket.pin]:
                    del self._pins[ticket.pin]
            ticket.sock, ticket.gone = None, True
            self._total -= 1
            self._changed.notify_all()

    def total(self) -> int:
        """How many connections there are."""
        with self._changed:
            return self._total

    # --- inside; the caller holds the lock

    def _in_the_way(self, where: str, *, reserved: bool) -> Ticket | None:
        """The connection that must end before one from `where` comes in."""
        pool = [t for t in self._guests if t.reserved == reserved]
        most = self._limits.connections_reserved if reserved else self._limits.connections_without_certificate
        here = [t for t in pool if t.place == where]
        if not reserved and len(here) >= self._limits.connections_per_address:
            return _oldest(here)
        return _oldest(pool) if len(pool) >= most else None

    def _evict(self, ticket: Ticket) -> None:
        ticket.evicted = True
        self._tell()
        del self._guests[ticket]
        _hang_up(ticket)

    def _remember(self, where: str) -> None:
        self._recent.pop(where, None)
        self._recent[where] = self._clock()
        while len(self._recent) > MAX_PLACES:
            del self._recent[next(iter(self._recent))]


def place(address: str) -> str:
    """What counts as one address: an IPv4 address, or the 64-bit network of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((found, _V6_NETWORK), strict=False))
    return str(found)


def _oldest(tickets: Iterable[Ticket]) -> Ticket | None:
    """The one to evict: unfinished handshakes first, of the address that has most of them, the oldest."""
    there = list(tickets)
    those = [t for t in there if not t.shaken] or there
    counts = Counter(t.place for t in those)
    return max(those, key=lambda t: counts[t.place], default=None)  # of equals the first, which is the oldest


def _hang_up(ticket: Ticket) -> None:
    """Wake the connection's thread, which then finds the end of its stream."""
    if ticket.sock is not None:
        with contextlib.suppress(OSError):  # the plain socket's: SSLSocket.shutdown drops the TLS state
            socket.socket.shutdown(ticket.sock, socket.SHUT_RDWR)
