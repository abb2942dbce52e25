"""What a good client never sends: broken heads, lying lengths, foreign ranges, dripping bytes, too much of all."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_process import CONFIG, MIB, PATIENCE, Relay, World, name, noise, read_answer, root, until

from fedhpc.errors import PolicyError
from fedhpc.relay.http.connection import parse_head
from fedhpc.relay.problems import Problem
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.wire.object_names import ObjectName


def put(path: str, *headers: str) -> str:
    return "\n".join((f"PUT /v1/objects/{CONFIG}/{path} HTTP/1.1", "host: r", *headers))


def test_parts_in_any_order_twice_and_wrong(relay: Relay) -> None:
    data = bytes(noise(2 * MIB + 5))

    def part(first: int, last: int, whole: int = len(data), body: bytes | None = None, size: int | None = None) -> int:
        body = data[first : last + 1] if body is None else body
        size = len(body) if size is None else size
        head = put("30/0/V/1", f"content-range: bytes {first}-{last}/{whole}", f"content-length: {size}")
        return relay.ask(head, body)[0]

    assert part(2 * MIB, len(data) - 1) == 202  # the end first
    assert part(2 * MIB, len(data) - 1) == 202  # duplicate
    assert part(2 * MIB, len(data) - 1, body=b"other") == 409
    assert part(0, 2 * MIB - 1, whole=len(data) + 1) == 409  # another length
    assert part(0, MIB, body=data[: MIB + 1]) == 416  # not whole blocks
    assert part(1, MIB, body=data[1 : MIB + 1]) == 416
    assert part(0, MIB - 1, body=data[:MIB], size=MIB - 1) == 416  # the range says more than the body
    assert part(0, 2 * MIB - 1, body=data[:MIB]) == 416
    assert part(MIB, 3 * MIB - 1, body=bytes(2 * MIB)) == 416  # beyond the end
    assert part(MIB, MIB - 1, body=b"") == 416
    assert part(0, 2**63, whole=2**63 + 1, body=b"", size=0) == 416
    assert part(0, 10**19, whole=10**19, body=b"", size=0) == 416
    with relay.raw() as sock:  # truncated: one block and a half of two, then gone
        head = put("30/0/V/1", f"content-range: bytes 0-{2 * MIB - 1}/{len(data)}", f"content-length: {2 * MIB}")
        sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + data[: MIB + MIB // 2])
    until(lambda: relay.client(1).missing(name("V/1", round_=30)) == (len(data), [(MIB, 2 * MIB)]))
    assert relay.ask(put("30/0/V/1", "content-range: bytes 0-1/x", "content-length: 2"), b"hi")[0] == 416
    assert part(MIB, 2 * MIB - 1) == 202
    assert relay.client(2).get(name("V/1", round_=30)) is None  # whole, but nobody has said its Tree
    head = put("30/0/V/1", f"content-range: bytes */{len(data)}", f"fedhpc-tree: {root(data)}", "content-length: 0")
    assert relay.ask(head)[0] == 201
    assert relay.client(2).get(name("V/1", round_=30)) == data


def test_lengths_that_lie(relay: Relay) -> None:
    before = relay.peak_bytes()
    for length in (2**63, 2**63 - 1, 2**64 + 1, 10**18, (1 << 30) + 1):
        status, text = relay.ask(put("31/0/V/1", f"content-length: {length}"), b"x")
        assert (status, "too-large" in text) == (413, True), text
    for length in ("-1", "1e3", "0x10", "+5", "1 2", "9" * 30, ""):
        assert relay.ask(put("31/0/V/1", f"content-length: {length}"), b"x")[0] == 400
    assert relay.ask(put("31/0/V/1", "content-length: 5", "content-length: 6"), b"hello")[0] == 400
    assert relay.ask(put("31/0/V/1"))[0] == 411
    assert relay.ask(put("31/0/V/1", "transfer-encoding: chunked"), b"5\r\nhello\r\n0\r\n\r\n")[0] == 411
    assert relay.ask(put("31/0/V/1", "content-length: 0"))[0] == 400
    # a whole length that no quota allows, with an honest small part
    head = put("31/0/V/1", f"content-range: bytes 0-{MIB - 1}/{2**62}", f"content-length: {MIB}")
    assert relay.ask(head, bytes(MIB))[0] == 413
    assert relay.client(1).missing(name("V/1", round_=31)) is None
    assert relay.peak_bytes() - before < 24 * MIB


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/objects/{CONFIG}/1/0/../../../etc/passwd",
        f"/v1/objects/{CONFIG}/1/0/M1%2f1",
        f"/v1/objects/{CONFIG}/1/0/M1/1/2/3",
        f"/v1/objects/{CONFIG}/1/0/m1/1",
        f"/v1/objects/{CONFIG}/1/0/M1/01",
        f"/v1/objects/{CONFIG}/1/0/M1/0",
        f"/v1/objects/{CONFIG}/1/0/M1.part",
        f"/v1/objects/{CONFIG}/-1/0/M1/1",
        f"/v1/objects/{CONFIG}/01/0/M1/1",
        f"/v1/objects/{CONFIG}/{10**17}/0/M1/1",
        f"/v1/objects/{CONFIG.upper()}/1/0/M1/1",
        f"/v1/objects/{CONFIG}/1/0/" + "M" * 300,
        f"/v1/objects/{CONFIG}/1/0/?wait=nan",
        f"/v1/objects/{CONFIG}/1/0/?wait=-1",
        f"/v1/objects/{CONFIG}/1/0/?x=1",
        f"/v1/objects/{CONFIG}/1/0/?" + "wait=1&" * 50,
    ],
)
def test_names_outside_the_character_set(relay: Relay, path: str) -> None:
    assert relay.ask(f"GET {path} HTTP/1.1\nhost: r")[0] == 400


def test_heads_that_are_no_requests(relay: Relay) -> None:
    for text in ("nonsense", "GET / HTTP/1.1", "GET /v1/health HTTP/1.1\nhost: r\nhost: q", "GET  / HTTP/1.1\nhost: r"):
        assert relay.ask(text)[0] == 400, text
    assert relay.ask("GET /v1/health HTTP/1.1\nhost: r\nx: " + "a" * 20000)[0] == 431
    assert relay.ask("POST /v1/health HTTP/1.1\nhost: r\ncontent-length: 0")[0] == 405
    assert relay.ask("GET /v1/health HTTP/1.1\nhost: r\ncontent-length: 3", b"abc")[0] == 400
    assert relay.ask(f"DELETE /v1/objects/{CONFIG}/1/0/M1/1 HTTP/1.1\nhost: r")[0] == 405
    with relay.raw() as sock:  # two requests in one packet are two requests
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nhost: r\r\n\r\n" * 2)
        assert read_answer(sock)[1].count("HTTP/1.1 200") + read_answer(sock)[1].count("HTTP/1.1 200") >= 1


def test_one_head_is_one_request() -> None:
    hidden = b"GET /v1/health HTTP/1.1\r\nhost: r\n\nGET /v1/other HTTP/1.1\r\nhost: r\r\n\r\n"
    with pytest.raises(Problem, match="not one request"):
        parse_head(hidden, 16384)


def test_ranges(relay: Relay) -> None:
    relay.client(1).put(name("R/1", round_=32), b"0123456789")
    get = f"GET /v1/objects/{CONFIG}/32/0/R/1 HTTP/1.1\nhost: r\nrange: "
    for given_range, body in (("bytes=0-3", "0123"), ("bytes=8-", "89"), ("bytes=5-999", "56789")):
        status, text = relay.ask(get + given_range)
        assert (status in (200, 206), text.endswith("\r\n\r\n" + body)) == (True, True)
    for bad in ("bytes=10-", "bytes=5-4", "bytes=-3", "bytes=0-1,3-4", "items=0-1", f"bytes={2**70}-"):
        assert relay.ask(get + bad)[0] == 416, bad
    status, text = relay.ask(f"HEAD /v1/objects/{CONFIG}/32/0/R/1 HTTP/1.1\nhost: r")
    assert (status, text.endswith("\r\n\r\n"), "content-length: 10" in text) == (200, True, True)


def test_quotas(new_relay: Callable[..., Relay], world: World) -> None:
    relay = new_relay(roster=world.roster(quota_bytes=16 * MIB, objects=12))
    site, other = relay.client(1), relay.client(2)
    site.put(name("A/1"), noise(3 * MIB))
    with pytest.raises(RelayProblem, match="507 quota"):
        site.put(name("B/1"), noise(2 * MIB))
    with pytest.raises(RelayProblem, match="413 too-large"):
        site.put(name("B/1"), noise(5 * MIB))
    site.put(name("B/1"), noise(MIB))  # up to the share
    other.put(name("A/2"), noise(3 * MIB))  # whose fullness is not the others'
    site3 = relay.client(3)
    for number in range(1, 4):
        site3.put(name(f"C/3/{number}"), b"x")
    with pytest.raises(RelayProblem, match=r"507 quota.*too many objects"):
        site3.put(name("C/3/4"), b"x")
    assert relay.client(2).get(name("A/1"), most_bytes=8 * MIB) == noise(3 * MIB)


def test_slow_peers_are_cut_off(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay("handshake_s = 2.0\nhead_s = 2.0\nidle_s = 2.5\nstall_s = 2.0\nmin_bytes_per_s = 100000\n")

    def ends(sock: socket.socket, drip: bytes) -> None:
        deadline = time.monotonic() + 10 * PATIENCE
        sock.settimeout(0.1)
        while time.monotonic() < deadline:
            try:
                sock.sendall(drip)
                sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return
        raise AssertionError("the relay still waits")

    with socket.create_connection(("127.0.0.1", relay.port)) as plain:  # no handshake at all
        plain.settimeout(5 * PATIENCE)
        assert plain.recv(10) == b""
    with relay.raw() as sock:  # a head, letter by letter
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nx: ")
        ends(sock, b"a")
    with relay.raw() as sock:  # a body, drop by drop: each byte comes in time, but the pace is hopeless
        sock.sendall(put("33/0/V/1", "content-length: 900000").replace("\n", "\r\n").encode() + b"\r\n\r\n")
        ends(sock, b"a")
    with relay.raw() as sock:  # a body that stops
        sock.sendall(put("33/0/V/1", "content-length: 900000").replace("\n", "\r\n").encode() + b"\r\n\r\nabc")
        status, text = read_answer(sock)
        assert (status, "slow" in text) == (408, True)
    with relay.raw() as sock:  # idle
        sock.settimeout(5 * PATIENCE)
        assert sock.recv(10) == b""
    assert relay.client(1).health() == "ok"


def test_connection_caps(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay("connections_per_site = 3\nconnections_reserved = 4\nidle_s = 30.0\nhead_s = 20.0\n")
    with relay.raw(), relay.raw(), relay.raw():
        time.sleep(0.3)
        assert relay.ask("GET /v1/health HTTP/1.1\nhost: r")[0] == 429
        assert relay.ask("GET /v1/health HTTP/1.1\nhost: r", who="site2")[0] == 200  # the others are not touched
    with relay.raw("") as oldest, relay.raw(""), relay.raw(""), relay.raw("") as newest:
        time.sleep(0.3)
        with relay.raw("") as sock:  # a stranger more, and the oldest makes room
            assert oldest.recv(1) == b""
            for stays in (newest, sock):
                stays.sendall(b"GET /v1/health HTTP/1.1\r\nhost: r\r\n\r\n")
                assert read_answer(stays)[0] == 200
    until(lambda: "fedhpc_relay_connections 0" in relay.metrics())
    assert relay.client(1).health() == "ok"


def test_a_refused_upload_stops_early(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    with pytest.raises(PolicyError, match="403"):
        RelayClient(relay.world.access(relay.port), 1, Patience(5, 0.05, 0.2)).upload(name("V/2"), 200 * MIB).write(
            0, memoryview(bytearray(200 * MIB))
        )
    assert relay.received_bytes() < 50 * MIB, "most of it was not even sent"


NEAR_HEADS = st.builds(lambda a, b: b"PUT /%s HTTP/1.1\r\n%s\r\n\r\n" % (a, b), st.binary(), st.binary(max_size=200))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | NEAR_HEADS)
def test_fuzzed_heads_are_parsed_or_refused(data: bytes) -> None:
    status, head = 0, None
    try:
        head = parse_head(data, 16384)
    except Problem as problem:
        status = problem.status
    assert status in (400, 411) if head is None else head.length >= 0


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=100) | st.from_regex(r"[0-9a-f]{64}/[0-9]{1,3}/[0-9]/[A-Za-z0-9./]{1,9}", fullmatch=True))
def test_fuzzed_names_are_themselves_or_refused(text: str) -> None:
    try:
        parsed = ObjectName.parse(text)
    except ValueError:
        return
    assert str(parsed) == text
    assert ".." not in text
    assert parsed.owner is None or 1 <= parsed.owner <= 999
