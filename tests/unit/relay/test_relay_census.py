"""Who gets a connection when there are more than there is room for."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.errors import ConfigError
from fedhpc.relay.http import census
from fedhpc.relay.http.census import MAX_PLACES, RECENT_S, Census, Ticket, place
from fedhpc.relay.settings import Limits, Roster

PINS = [bytes([u]) * 32 for u in range(8)]


class Door:
    """A census with a clock that tests turn, and connections whose threads leave at once when they are told to."""

    def __init__(self, **limits: int) -> None:
        self.now, self.evictions = 0.0, 0
        self.limits = Limits(**limits)
        self.census = Census(self.limits, self._count, lambda: self.now)
        self.open: list[Ticket] = []

    def _count(self) -> None:
        self.evictions += 1

    def come(self, address: str) -> Ticket | None:
        mine, theirs = socket.socketpair()
        ticket = self.census.enter(address, mine)
        if ticket is not None:
            self.open.append(ticket)
            threading.Thread(target=self._live, args=(ticket, mine, theirs), daemon=True).start()
        return ticket

    def _live(self, ticket: Ticket, mine: socket.socket, theirs: socket.socket) -> None:
        with mine, theirs:
            mine.recv(1)  # until it is told to leave
            self.census.leave(ticket)

    def close(self) -> None:
        for ticket in self.open:
            if ticket.sock is not None:
                census._hang_up(ticket)


@pytest.fixture
def door(request: pytest.FixtureRequest) -> Callable[..., Door]:
    def new(**limits: int) -> Door:
        made = Door(**limits)
        request.addfinalizer(made.close)
        return made

    return new


def there(tickets: list[Ticket | None]) -> list[bool]:
    return [t is not None and not t.evicted for t in tickets]


def test_nobody_is_turned_away_while_handshakes_are_unfinished(door: Callable[..., Door]) -> None:
    full = door()
    silent = [full.come(f"10.0.0.{n}") for n in range(full.limits.connections_without_certificate)]
    site = full.come("192.0.2.7")
    assert site is not None
    assert there(silent) == [False] + [True] * (len(silent) - 1)
    assert full.census.prove(site, PINS[0], 4)
    assert full.evictions == 1


def test_the_address_that_has_most_makes_room(door: Callable[..., Door]) -> None:
    full = door()
    honest = [full.come(f"10.0.0.{n}") for n in range(30)]
    flood = [full.come("203.0.113.9") for _ in range(200)]
    assert there(honest) == [True] * 30
    assert sum(there(flood)) == 18
    assert there(flood)[-1]


def test_one_address_has_a_cap_of_its_own(door: Callable[..., Door]) -> None:
    full = door(connections_per_address=5)
    flood = [full.come("203.0.113.9") for _ in range(30)]
    assert there(flood) == [False] * 25 + [True] * 5


def test_strangers_that_have_finished_their_handshake_leave_after_those_that_have_not(
    door: Callable[..., Door],
) -> None:
    full = door(connections_without_certificate=4)
    tickets = [full.come(f"10.0.0.{n}") for n in range(4)]
    for ticket in tickets[:3]:
        assert ticket is not None
        full.census.shaken(ticket)
    tickets.append(full.come("10.0.0.9"))
    assert there(tickets) == [True, True, True, False, True]
    assert tickets[4] is not None
    full.census.shaken(tickets[4])
    tickets.append(full.come("10.0.0.10"))
    assert there(tickets) == [False, True, True, False, True, True]


def test_where_a_known_key_came_from_strangers_have_no_say(door: Callable[..., Door]) -> None:
    full = door(connections_without_certificate=2, connections_reserved=2)
    site = full.come("192.0.2.7")
    assert site is not None
    assert full.census.prove(site, PINS[0], 4)
    again = full.come("192.0.2.7")
    flood = [full.come(f"10.0.0.{n}") for n in range(50)]
    assert there([site, again]) == [True, True]
    assert sum(there(flood)) == 2
    full.census.leave(site)
    full.now += RECENT_S - 1
    assert full.come("192.0.2.7") is not None
    assert there([again]) == [True]
    full.now += 2  # a day after the last time it was seen
    late = full.come("192.0.2.7")
    assert late is not None
    assert not late.reserved


def test_a_connection_that_lasts_for_days_keeps_its_place(door: Callable[..., Door]) -> None:
    full = door()
    site = full.come("192.0.2.7")
    assert site is not None
    full.census.prove(site, PINS[0], 4)
    full.now += 10 * RECENT_S
    full.census.leave(site)
    back = full.come("192.0.2.7")
    assert back is not None
    assert back.reserved


def test_sites_that_share_an_address_share_no_cap(door: Callable[..., Door]) -> None:
    """Eight sites behind one address translation, 16 connections each, as many as a site file may have."""
    full = door()
    for _ in range(16):
        for pin in PINS:
            ticket = full.come("192.0.2.7")
            assert ticket is not None
            assert full.census.prove(ticket, pin, len(PINS))
    assert full.evictions == 0


def test_the_caps_of_keys(door: Callable[..., Door]) -> None:
    full = door(
        connections=28, connections_without_certificate=4, connections_reserved=4, connections_per_site=16
    )  # 20 for sites

    def enter(pin: bytes) -> bool:
        ticket = full.come("192.0.2.7")
        proved = ticket is not None and full.census.prove(ticket, pin, 4)
        if ticket is not None and not proved:
            census._hang_up(ticket)
        return proved

    assert [enter(PINS[0]) for _ in range(16)].count(True) == 15  # three quarters of the room, if it is much
    assert [enter(PINS[1]) for _ in range(6)].count(True) == 5  # the last quarter is for who has less than its share
    assert full.census.total() <= 28
    assert not enter(PINS[2])


def test_hostile_keys_leave_room_for_the_others(door: Callable[..., Door]) -> None:
    """Eight keys of which each may have 64 would fill 512 connections."""
    full = door()
    keys = [bytes([u]) * 32 for u in range(20)]
    for pin in keys[:8]:
        for _ in range(64):
            ticket = full.come("198.51.100.1")
            if ticket is not None and not full.census.prove(ticket, pin, len(keys)):
                census._hang_up(ticket)
    for pin in keys[8:]:
        ticket = full.come("192.0.2.7")
        assert ticket is not None
        assert full.census.prove(ticket, pin, len(keys))


def test_a_hundred_sites_have_four_connections_each(door: Callable[..., Door]) -> None:
    full = door()
    keys = [bytes([u]) * 32 for u in range(100)]
    for _ in range(4):
        for u, pin in enumerate(keys):
            ticket = full.come(f"10.0.0.{u}")
            assert ticket is not None
            assert full.census.prove(ticket, pin, len(keys))
    assert full.evictions == 0


def test_who_was_told_to_leave_proves_nothing(door: Callable[..., Door]) -> None:
    full = door(connections_without_certificate=1)
    first = full.come("10.0.0.1")
    assert full.come("10.0.0.2") is not None
    assert first is not None
    assert not full.census.prove(first, PINS[0], 1)


def test_places() -> None:
    assert place("192.0.2.7") == place("::ffff:192.0.2.7") == "192.0.2.7"
    assert place("2001:db8:1:2::3") == place("2001:db8:1:2:ffff::9%eth0") != place("2001:db8:1:3::3")
    assert place("") == ""


def test_few_addresses_are_remembered(door: Callable[..., Door]) -> None:
    full = door()
    for n in range(MAX_PLACES + 5):
        full.census._remember(str(n))
    assert len(full.census._recent) == MAX_PLACES
    assert "4" not in full.census._recent


def test_limits_leave_connections_for_sites() -> None:
    with pytest.raises(ConfigError, match="leaves no connection for sites"):
        Limits(connections=112)
    assert Limits(connections=113).of_sites == 1
    assert Roster().keys == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["come", "shake", "prove", "leave"]), st.integers(0, 5), st.integers(0, 30)),
        max_size=60,
    )
)
def test_the_caps_hold_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    full = Door(
        connections=20,
        connections_without_certificate=4,
        connections_reserved=3,
        connections_per_address=2,
        connections_per_site=5,
    )
    try:
        for what, where, which in steps:
            live = [t for t in full.open if not t.evicted and not t.gone]
            if what == "come":
                came = full.come(f"10.0.0.{where}")
                assert came is not None or full.census.total() >= 13
            elif live:
                ticket = live[which % len(live)]
                if what == "shake":
                    full.census.shaken(ticket)
                elif what == "prove" and ticket.pin is None:
                    full.census.prove(ticket, PINS[where], 6)
                elif what == "leave":
                    census._hang_up(ticket)
            guests = list(full.census._guests)
            assert sum(not t.reserved for t in guests) <= 4
            assert sum(t.reserved for t in guests) <= 3
            places = Counter(t.place for t in guests if not t.reserved)
            assert max(places.values(), default=0) <= 2
            assert full.census._pins.total() <= 13
            assert full.census.total() <= 20
    finally:
        full.close()
