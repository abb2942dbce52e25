"""Objects up and down through a real relay over real TLS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from relay_process import CONFIG, MIB, Proxy, Relay, name, noise, root, until

from fedhpc.errors import PeersError, PolicyError
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience, Retry
from fedhpc.transport.link_problems import RelayProblem


@pytest.mark.parametrize("length", [1, 65536, MIB - 1, MIB, MIB + 1, 5 * MIB, 9 * MIB + 12345])
def test_what_goes_up_comes_down(relay: Relay, length: int) -> None:
    data = noise(length, length)
    client = relay.client(1, connections=3)
    what = name("Z/1", round_=1, attempt=length)
    assert client.put(what, data).hex() == root(data)
    back = bytearray(length)
    assert relay.client(2, connections=3).get_into(what, memoryview(back)).hex() == root(data)
    assert back == data
    assert relay.client(3).get(what, most_bytes=16 * MIB) == data


def test_put_again_is_quiet_and_other_bytes_are_refused(relay: Relay) -> None:
    for length in (1000, 3 * MIB):
        data = noise(length)
        what = name("M1/1", round_=2, attempt=length)
        client = relay.client(1)
        client.put(what, data)
        client.put(what, data)
        relay.client(1).upload(what, length).write(0, memoryview(data))  # as a client that does not know would
        data[length // 2] ^= 1
        with pytest.raises(PolicyError, match="409 other-bytes"):
            client.put(what, data)
        with pytest.raises(PolicyError, match="409 other-bytes"):
            relay.client(1).upload(what, length).write(0, memoryview(data))
        with pytest.raises(PolicyError, match=r"409 other-bytes|has M1/1"):
            client.put(what, data + b"more")
        data[length // 2] ^= 1
        assert relay.client(2).get(what) == data


def test_long_poll_wakes_when_the_object_arrives(relay: Relay) -> None:
    what = name("M2/1", round_=3)
    data = noise(3 * MIB)
    into = bytearray(len(data))
    times: list[float] = []

    def wait() -> None:
        relay.client(2).get_into(what, memoryview(into), wait_s=20)
        times.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    assert not times
    relay.client(1).put(what, data)
    thread.join(10)
    assert into == data
    begin = time.monotonic()
    assert relay.client(2).get(name("M2/2", round_=3), wait_s=0.5) is None
    assert time.monotonic() - begin > 0.4


def test_listing_waits_for_what_is_new(relay: Relay) -> None:
    client, other = relay.client(1), relay.client(2)
    client.put(name("M1/1", round_=4), b"one")
    found, cursor = other.listing(name("M1/1").config, 4, 0)
    assert [(e.name, e.length, e.tree.hex()) for e in found] == [("M1/1", 3, root(b"one"))]
    assert other.listing(name("M1/1").config, 4, 0, cursor, 0.2) == ([], cursor)
    timer = threading.Timer(0.3, lambda: other.put(name("M1/2", round_=4), b"two"))
    timer.start()
    found, later = client.listing(name("M1/1").config, 4, 0, cursor, 20)
    assert [e.name for e in found] == ["M1/2"]
    assert later != cursor
    timer.join()
    everything, _ = client.listing(name("M1/1").config, 4, 0, "0123456789abcdef.7", 5)  # a cursor of another life
    assert [e.name for e in everything] == ["M1/1", "M1/2"]


def test_an_upload_by_several_ranks_in_any_order(relay: Relay) -> None:
    data = noise(6 * MIB + 7)
    view = memoryview(data)
    what = name("M3v/1", round_=5)
    ranks = [relay.client(1).upload(what, len(data)) for _ in range(3)]
    for rank, (low, high) in zip(ranks, [(4, 7), (2, 4), (0, 2)], strict=True):
        rank.write(low * MIB, view[low * MIB : high * MIB])
    digests = {k: v for rank in ranks for k, v in rank.digests.items()}
    ranks[0].digests = digests
    assert ranks[0].commit().hex() == root(data)
    assert relay.client(1).get(what, most_bytes=16 * MIB) == data
    with pytest.raises(PolicyError, match="403"):
        relay.client(2).get(what)  # a masked vector is for the relay


@pytest.mark.parametrize("length", [1, 1000, MIB])
def test_a_wrong_tree_of_a_small_object_is_found(relay: Relay, length: int) -> None:
    data = noise(length)
    what = name("V/1", round_=6, attempt=length)
    upload = relay.client(1).upload(what, length)
    upload.write(0, memoryview(data))
    with pytest.raises(PeersError, match="422 tree-mismatch"):
        upload.commit(bytes(32).replace(b"\0", b"\1"))
    assert relay.client(1).missing(what) is None
    relay.client(1).put(what, data)
    assert relay.client(2).get(what) == data


def test_a_wrong_tree_of_a_large_object_is_found_by_those_who_read_it(relay: Relay) -> None:
    data = noise(3 * MIB)
    what = name("V/1", round_=6)
    upload = relay.client(1).upload(what, len(data))
    upload.write(0, memoryview(data))
    wrong = bytes(32).replace(b"\0", b"\1")
    assert upload.commit(wrong) == wrong  # the relay hashes no vector: it keeps what the site has said
    with pytest.raises(PolicyError, match="other bytes"):
        relay.client(2).get(what)
    with pytest.raises(PolicyError, match="other bytes"):
        relay.client(2).get_into(what, memoryview(bytearray(len(data))))
    with pytest.raises(PolicyError, match="other bytes"):
        relay.client(2).get_into(what, memoryview(bytearray(len(data))), tree=bytes.fromhex(root(noise(3 * MIB, 1))))
    signed = bytes.fromhex(root(data))
    assert relay.client(2).get_into(what, memoryview(bytearray(len(data))), tree=signed) == signed
    with pytest.raises(PolicyError, match="409 other-bytes"):
        relay.client(1).put(what, data)  # another Tree under the same name
    assert relay.client(2).fetch_part(what, len(data), 0, memoryview(bytearray(len(data)))) is not None


def test_a_commit_without_all_blocks_is_not_whole(relay: Relay) -> None:
    data = noise(3 * MIB)
    upload = relay.client(1).upload(name("V/1", round_=7), len(data))
    upload.write(0, memoryview(data)[: 2 * MIB])
    with pytest.raises(PeersError, match="lost parts"):
        upload.commit(bytes.fromhex(root(data)))
    assert relay.client(2).get(name("V/1", round_=7)) is None
    assert relay.client(1).missing(name("V/1", round_=7)) == (3 * MIB, [(2 * MIB, 3 * MIB)])


@pytest.mark.parametrize("cut_after", [1, 3000, 700_000, 5_000_000])
def test_a_cut_connection_is_resumed(new_relay: Callable[..., Relay], cut_after: int) -> None:
    relay = new_relay()
    data = noise(12 * MIB)
    proxy = Proxy(cut_after=cut_after)
    retries: list[Retry] = []

    def after_the_relay_has_seen_it(retry: Retry) -> None:
        """What still lay in the relay's buffers counts as arrived."""
        retries.append(retry)
        until(lambda: "fedhpc_relay_connections 0" in relay.metrics())

    access = relay.world.access(relay.port, proxy=proxy.url)
    client = RelayClient(access, 1, Patience(10.0, 0.05, 0.2), after_the_relay_has_seen_it)
    what = name("M3v/1", round_=8)
    upload = client.upload(what, len(data))
    upload.write(0, memoryview(data))
    upload.commit()
    client.close()
    assert proxy.cuts >= 1
    assert 0 < retries[0].seconds_left <= 0.2 < retries[0].patience_left_s
    until(lambda: "fedhpc_relay_connections 0" in relay.metrics())
    assert relay.received_bytes() == len(data)  # whole blocks, none of them twice
    proxy.cut_after = cut_after
    down = RelayClient(access, 1, Patience(10.0, 0.05, 0.2))
    back = bytearray(len(data))
    down.get_into(what, memoryview(back))
    assert back == data
    assert proxy.cuts >= 2
    proxy.close()


def test_a_connection_that_the_relay_has_closed_is_replaced_without_a_pause(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay("idle_s = 0.2\n")
    retries: list[Retry] = []
    client = RelayClient(relay.world.access(relay.port), 1, Patience(10.0, 0.05, 0.2), retries.append)
    for _ in range(2):
        assert client.health() == "ok"
        until(lambda: "fedhpc_relay_connections 0" in relay.metrics())
    assert not retries


def test_a_call_that_waits_stops_no_transfer_and_ends_with_close(relay: Relay) -> None:
    client = relay.client(1, connections=1)
    ended: list[str] = []

    def wait(ask: Callable[[], object]) -> None:
        try:
            ask()
        except PeersError as error:
            ended.append(error.what)

    into = memoryview(bytearray(9))
    asks: list[Callable[[], object]] = [
        lambda: client.listing(CONFIG, 16, 1, wait_s=50),
        lambda: client.get(name("Y", round_=16, attempt=1), wait_s=50),
        lambda: client.get_into(name("Y", round_=16, attempt=1), into, wait_s=50),
    ]
    threads = [threading.Thread(target=wait, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    until(lambda: client.traffic.requests == len(asks))
    data = noise(3 * MIB)
    client.put(name("V/1", round_=16), data)
    assert client.get_into(name("V/1", round_=16), memoryview(bytearray(len(data)))) is not None
    assert all(thread.is_alive() for thread in threads)
    client.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert ended == ["the connection to the relay was closed by this program"] * len(asks)
    with pytest.raises(PeersError, match="closed by this program"):
        client.health()


def test_traffic_is_counted(relay: Relay) -> None:
    client = relay.client(1)
    client.put(name("V/1", round_=17), b"12345")
    assert client.get(name("V/1", round_=17)) == b"12345"
    assert (client.traffic.requests, client.traffic.bytes_up) == (2, 5)
    assert client.traffic.bytes_down > 5  # and the answer to the PUT
    assert client.traffic.waited_s > 0


def test_get_json(relay: Relay) -> None:
    client = relay.client(1)
    assert client.get_json("/v1/health") == {"status": "ok"}
    with pytest.raises(RelayProblem, match="404 absent"):
        client.get_json("/v1/nothing")
    client.put(name("V/1", round_=18), b"[1]")
    with pytest.raises(RelayProblem, match="not a JSON object"):
        client.get_json(f"/v1/objects/{name('V/1', round_=18)}")
