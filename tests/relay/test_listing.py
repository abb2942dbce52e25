"""Listings: answered when there is enough, with the bodies that fit; and what a site makes of an answer that lies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_process import CONFIG, MIB, Relay, name, noise, root

from fedhpc.errors import PolicyError
from fedhpc.relay.http.listing import Wanted
from fedhpc.relay.store.object_store import Stored
from fedhpc.secure.suite import SHA256
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.transport.listing import read_listing

LIST = f"GET /v1/objects/{CONFIG}/"


def names(relay: Relay, round_: int, *, site: int = 2, **query: object) -> list[str]:
    """The names in a listing of attempt 1."""
    entries, _ = relay.client(site).listing(CONFIG, round_, 1, **query)  # type: ignore[arg-type]
    return [entry.name for entry in entries]


def test_waits_for_so_many_of_a_kind(relay: Relay) -> None:
    for site in (1, 2):
        relay.client(site).put(name("M1/" + str(site), round_=60, attempt=1), b"key")
    _, cursor = relay.client(3).listing(CONFIG, 60, 1)
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.append(names(relay, 60, after=cursor, wait_s=20, until=("M2", 2))))
    thread.start()
    for what in ("M2/1", "M1/3", "M3/2"):  # one of the two, and others that nobody waits for
        relay.client(int(what[-1])).put(name(what, round_=60, attempt=1), what.encode())
    relay.client(2).put(name("M2/2", round_=60, attempt=1), b"M2/2")
    thread.join(10)
    assert found == [["M2/1", "M1/3", "M3/2", "M2/2"]]
    # the ones before the cursor count, and what came is told when the wait is over
    assert names(relay, 60, after=cursor, wait_s=20, until=("M1", 3)) == ["M2/1", "M1/3", "M3/2", "M2/2"]
    assert names(relay, 60, after=cursor, wait_s=0.2, until=("M2", 3)) == ["M2/1", "M1/3", "M3/2", "M2/2"]
    assert names(relay, 60, wait_s=0, until=("M9", 1)) == ["M1/1", "M1/2", "M2/1", "M1/3", "M3/2", "M2/2"]


def stored(what: str, sequence: int) -> Stored:
    return Stored(name(what, attempt=1), 5, bytes(32), sequence, Path(what), bytes(32))


@pytest.mark.parametrize("turn", ["NEXT", "DONE", "A2"])
def test_who_waits_learns_that_the_relay_has_gone_on(turn: str) -> None:
    objects = [stored("M4/1", 1), stored(turn, 2), stored("NEXT/1", 3)]  # the last is a site's, and says nothing
    wanted = Wanted("M4", "2")
    assert wanted.choose(objects, 0) == objects
    assert wanted.choose(objects, 1) == objects[1:]
    assert wanted.choose(objects, 2) is None  # it knows
    assert wanted.choose([*objects, stored("M4/2", 4)], 2) == [objects[2], stored("M4/2", 4)]
    assert Wanted().choose(objects, 2) == objects[2:]


def test_small_bodies_come_along_and_vectors_never(relay: Relay) -> None:
    big, rest = noise(MIB - 10), noise(300, 1)
    for what, data in (("M1/1", b"one"), ("M3v/1", b"secret"), ("B/1", big), ("M2/1", rest), ("M4/1", b"four")):
        relay.client(1).put(name(what, round_=61, attempt=1), data)
    for site in (1, 2):
        entries, _ = relay.client(site).listing(CONFIG, 61, 1)
        bodies = {entry.name: entry.body for entry in entries}
        assert bodies == {"M1/1": b"one", "M3v/1": None, "B/1": bytes(big), "M2/1": None, "M4/1": b"four"}
        assert [entry.length for entry in entries] == [3, 6, MIB - 10, 300, 4]
    status, text = relay.ask(f"{LIST}61/1/ HTTP/1.1\nhost: r")
    assert (status, "application/json" in text, "inline" in text) == (200, True, False)


def test_a_watch_fetches_what_did_not_come_along(relay: Relay) -> None:
    data = {f"M5/{site}": bytes(noise(MIB // 2, site)) for site in (1, 2, 3)}
    for what, body in data.items():
        relay.client(int(what[-1])).put(name(what, round_=62, attempt=1), body)
    client = relay.client(4)
    watch = RelayExchange(client, bytes.fromhex(CONFIG), 4).watch(62, 1)
    watch.ahead("M5", 3)
    assert watch.wait(lambda w: len(w.sites("M5")) == 3, deadline=time.monotonic() + 20, until=("M5", 3))
    before = client.traffic.requests
    assert watch.messages("M5", (1, 2, 3)) == {u: data[f"M5/{u}"] for u in (1, 2, 3)}
    assert (before, client.traffic.requests) == (1, 2)  # the listing with two of them, and one GET
    watch.ahead("M5", 3)  # they are known: whoever waits for something else next does not wait for a fourth
    client.put(name("M6/4", round_=62, attempt=1), b"m6")
    assert watch.wait(lambda w: "M6/4" in w, deadline=time.monotonic() + 10)


def test_what_was_asked_ahead_fails_where_it_is_waited_for(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    watch = RelayExchange(relay.client(1), bytes(32), 1).watch(1, 1)  # of no federation that the relay knows
    watch.ahead("M1")
    with pytest.raises(PolicyError, match="403 forbidden"):
        watch.wait(lambda w: "M1/1" in w, deadline=time.monotonic() + 20)


@pytest.mark.parametrize(
    "query",
    [
        *("kind=m4", "kind=M4/1", "kind=" + "M" * 17, "kind=M4&count=0", "kind=M4&count=-1", "kind=M4&count=1e3"),
        *("kind=M4&count=10000", "count=3", "inline=2", "inline=yes", "inline=1&x=1", "kind=M4&" * 6),
    ],
)
def test_queries_that_are_refused(relay: Relay, query: str) -> None:
    status, text = relay.ask(f"{LIST}63/1/?{query} HTTP/1.1\nhost: r")
    assert (status, "urn:fedhpc:relay:bad-request" in text) == (400, True)


def listing(*objects: dict[str, object], bodies: bytes = b"", **more: object) -> bytes:
    return json.dumps({"after": "0.1", "objects": list(objects)} | more).encode() + b"\n" + bodies


ONE = {"name": "M1/1", "bytes": 3, "tree": root(b"abc"), "inline": True}


def test_an_honest_answer_is_read() -> None:
    entries, cursor = read_listing(listing(ONE, ONE | {"inline": False}, bodies=b"abc"), CONFIG, 1, 1, SHA256)
    assert (entries[0].body, entries[1].body, cursor) == (b"abc", None, "0.1")


@pytest.mark.parametrize(
    "data",
    [
        listing(ONE),  # the body is missing
        listing(ONE, bodies=b"ab"),
        listing(ONE, bodies=b"abcd"),  # bytes of nothing
        listing(ONE, ONE, bodies=b"abc"),
        listing(ONE | {"bytes": -3}, bodies=b"abc"),
        listing(ONE | {"bytes": True}, bodies=b"abc"),
        listing(ONE | {"bytes": 1 << 60}, bodies=b"abc"),
        listing(ONE | {"tree": "00"}, bodies=b"abc"),
        listing(ONE | {"tree": None}, bodies=b"abc"),
        listing(ONE | {"name": "../M1"}, bodies=b"abc"),
        listing(ONE | {"name": "M1/x"}, bodies=b"abc"),
        listing({}, bodies=b""),
        listing(after="x" * 65),
        listing(after="a b"),
        listing(objects=7),
        b"[" * 100_000,
        b"[]\n",
        b"7\n",
        b"",
        b"\xff\n",
    ],
)
def test_an_answer_of_another_form_is_nonsense(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_listing(data, CONFIG, 1, 1, SHA256)


def test_a_body_that_is_not_what_was_announced_is_refused() -> None:
    with pytest.raises(PolicyError, match="other bytes than it announced for M1/1"):
        read_listing(listing(ONE, bodies=b"abx"), CONFIG, 1, 1, SHA256)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=8))
def test_fuzzed_answers_are_read_or_refused(line: bytes, bodies: bytes) -> None:
    for data in (line + b"\n" + bodies, listing(ONE)[: len(line)] + bodies, listing(ONE, bodies=bodies)):
        try:
            entries, _ = read_listing(data, CONFIG, 1, 1, SHA256)
        except (ValueError, PolicyError):
            continue
        assert sum(len(entry.body or b"") for entry in entries) <= len(data)
