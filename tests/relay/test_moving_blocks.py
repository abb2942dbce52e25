"""Work on blocks while they move: once each, in the moving thread; parts of a vector by several ranks."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from relay_process import MIB, Proxy, Relay, name, noise, root

from fedhpc.errors import InternalError, PolicyError
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience
from fedhpc.transport.link_problems import RelayProblem


class Work:
    """A prepare or finish that adds 1 to every byte in place: a second call, or none, shows in the bytes."""

    def __init__(self, data: bytearray, first: int = 0) -> None:
        self.data, self.first = data, first
        self.calls: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, low: int, high: int) -> None:
        with self._lock:
            self.calls[low, high] += 1
        mine = slice(low - self.first, high - self.first)
        self.data[mine] = plus_one(self.data[mine])


def plus_one(data: bytes | bytearray) -> bytes:
    return bytes(data).translate(bytes((i + 1) % 256 for i in range(256)))


def once(length: int, first: int = 0) -> Counter[tuple[int, int]]:
    """Every block of an object from `first` to `length`, once."""
    return Counter((low, min(low + MIB, length)) for low in range(first, length, MIB))


def digests(data: bytes | bytearray, first: int = 0) -> dict[int, bytes]:
    return {(first + at) // MIB: hashlib.sha256(data[at : at + MIB]).digest() for at in range(0, len(data), MIB)}


@pytest.mark.parametrize(("connections", "cut_after"), [(1, 3000), (1, 5_000_000), (3, 700_000), (3, 2_500_000)])
def test_each_block_is_prepared_and_finished_once_however_often_connections_are_cut(
    relay: Relay, connections: int, cut_after: int
) -> None:
    length = 13 * MIB + 77
    plain = noise(length)
    proxy = Proxy(cut_after=cut_after)
    access = relay.world.access(relay.port, proxy=proxy.url)

    def client() -> RelayClient:
        return RelayClient(access, connections, Patience(10.0, 0.05, 0.2), piece_bytes=8 * MIB)

    def cutting(work: Work) -> Callable[[int, int], None]:
        def act(low: int, high: int) -> None:
            proxy.cut_after = cut_after  # every new tunnel will be cut, as long as blocks come
            work(low, high)

        return act

    what = name("M3v/1", round_=9, attempt=cut_after + connections)
    sent = bytearray(plain)
    prepare = Work(sent)
    upload = client().upload(what, length)
    upload.write(0, memoryview(sent), cutting(prepare))
    proxy.cut_after = 0
    upload.write(0, memoryview(sent), prepare)  # again: nothing is prepared twice, the relay has the same bytes
    assert prepare.calls == once(length)
    assert sent == plus_one(plain)
    assert upload.digests == digests(sent)
    assert upload.commit().hex() == root(sent)
    cuts = proxy.cuts
    assert cuts >= 1
    back = bytearray(length)
    finish = Work(back)
    proxy.cut_after = cut_after
    received = client().fetch_part(what, length, 0, memoryview(back), cutting(finish))
    assert proxy.cuts > cuts
    assert received == digests(sent)
    assert finish.calls == once(length)
    assert back == plus_one(sent)
    proxy.close()


def test_prepare_and_finish_run_side_by_side(relay: Relay) -> None:
    """With three connections three blocks are under way at once: each call waits until two others have begun."""
    data = bytearray(6 * MIB)
    what = name("V/1", round_=11)
    together = threading.Barrier(3, timeout=20)
    client = relay.client(1, connections=3)
    upload = client.upload(what, len(data))
    upload.write(0, memoryview(data), lambda low, high: together.wait() and None)
    upload.commit()
    client.fetch_part(what, len(data), 0, memoryview(data), lambda low, high: together.wait() and None)


def test_blocks_that_a_killed_predecessor_sent_are_prepared_and_not_sent(relay: Relay) -> None:
    plain = noise(7 * MIB + 5)
    what = name("M3v/1", round_=12)
    masked = plus_one(plain)
    relay.client(1).upload(what, len(plain)).write(2 * MIB, memoryview(masked)[2 * MIB : 5 * MIB])
    client = relay.client(1, connections=3)
    upload = client.upload(what, len(plain), resume=True)
    prepare = Work(plain)
    upload.write(0, memoryview(plain), prepare)
    assert prepare.calls == once(len(plain))
    assert client.traffic.bytes_up == len(plain) - 3 * MIB
    assert upload.commit().hex() == root(masked)
    other = Work(noise(7 * MIB + 5, 1))  # another vector, as if the data had changed: the relay keeps the first
    with pytest.raises(PolicyError, match="409 other-bytes"):
        relay.client(1).upload(what, len(plain)).write(0, memoryview(other.data), other)


def test_each_block_is_prepared_and_finished_once_while_the_relay_is_killed(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    length = 48 * MIB + 1
    plain = noise(length)
    sent = bytearray(plain)
    prepare = Work(sent)
    kills: list[int] = []
    busy = threading.Lock()

    def killing(work: Work, blocks: tuple[int, ...]) -> Callable[[int, int], None]:
        def act(low: int, high: int) -> None:
            with busy:  # other connections wait here, and find theirs cut
                if sum(work.calls.values()) in blocks:
                    kills.append(low)
                    relay.stop()
                    relay.start()
                work(low, high)

        return act

    client = RelayClient(relay.world.access(relay.port), 3, Patience(30.0, 0.05, 0.2))
    what = name("M3v/1")
    upload = client.upload(what, length)
    upload.write(0, memoryview(sent), killing(prepare, (10, 30)))
    assert prepare.calls == once(length)
    assert sent == plus_one(plain)
    assert upload.commit().hex() == root(sent)
    back = bytearray(length)
    finish = Work(back)
    assert client.fetch_part(what, length, 0, memoryview(back), killing(finish, (5, 40))) == digests(sent)
    assert finish.calls == once(length)
    assert back == plus_one(sent)
    assert len(kills) == 4


class Trouble(Exception):
    pass


@pytest.mark.parametrize("connections", [1, 4])
def test_an_exception_of_the_callers_work_ends_the_transfer(relay: Relay, connections: int) -> None:
    data = noise(40 * MIB)
    client = relay.client(1, connections=connections)
    what = name("V/1", round_=13, attempt=connections)
    begun: list[int] = []

    def fail_at_the_third(low: int, high: int) -> None:
        begun.append(low)
        if len(begun) >= 3:
            raise Trouble("no")

    upload = client.upload(what, len(data))
    with pytest.raises(Trouble, match=r"^no$"):
        upload.write(0, memoryview(data), fail_at_the_third)
    assert 3 <= len(begun) < 3 + connections  # the others stop at their next block
    with pytest.raises(InternalError, match="prepared in part"):
        upload.write(0, memoryview(data), lambda low, high: None)
    client.put(what, data)
    begun.clear()
    with pytest.raises(Trouble, match=r"^no$"):
        client.fetch_part(what, len(data), 0, memoryview(bytearray(len(data))), fail_at_the_third)
    assert 3 <= len(begun) < 3 + connections
    assert client.get(what, most_bytes=40 * MIB) == data  # the client is as good as before


def test_ranks_write_and_fetch_their_parts_at_once(relay: Relay) -> None:
    data = noise(11 * MIB + 3)
    length = len(data)
    what = name("V/1", round_=14)
    parts = [(0, 4 * MIB), (4 * MIB, 5 * MIB), (5 * MIB, 5 * MIB), (5 * MIB, length)]  # one rank has none
    ranks = [relay.client(1, connections=2) for _ in parts]
    found: list[dict[int, bytes]] = [{} for _ in parts]
    failures: list[BaseException] = []

    def all_ranks(act: Callable[[int, int, int], None]) -> None:
        def guarded(rank: int) -> None:
            try:
                act(rank, *parts[rank])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(len(parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures

    def write(rank: int, low: int, high: int) -> None:
        upload = ranks[rank].upload(what, length)
        mine = data[low:high]
        upload.write(low, memoryview(mine), lambda a, b: None)
        found[rank] = upload.digests

    def fetch(rank: int, low: int, high: int) -> None:
        mine = bytearray(high - low)
        work = Work(mine, low)
        there = ranks[rank].fetch_part(what, length, low, memoryview(mine), work, wait_s=20)
        assert there == found[rank] == digests(data[low:high], low)
        assert mine == plus_one(data[low:high])
        assert work.calls == once(high, low)

    reader = threading.Thread(target=lambda: all_ranks(fetch))
    all_ranks(write)
    assert relay.client(2).get(what) is None
    reader.start()  # waits for the commit
    upload = relay.client(1).upload(what, length, resume=True)
    upload.digests = {k: v for one in found for k, v in one.items()}
    assert upload.commit().hex() == root(data)
    reader.join(60)
    assert not failures


def test_parts_that_do_not_fit_the_object(relay: Relay) -> None:
    data = noise(2 * MIB + 9)
    what = name("V/1", round_=15)
    client = relay.client(1)
    assert client.fetch_part(what, len(data), MIB, memoryview(bytearray(MIB + 9))) is None
    client.put(what, data)
    last = bytearray(9)
    assert client.fetch_part(what, len(data), 2 * MIB, memoryview(last)) == digests(data[2 * MIB :], 2 * MIB)
    assert last == data[2 * MIB :]
    for length, first, size in ((len(data) + 1, 2 * MIB, 10), (2 * MIB, 0, 2 * MIB), (9 * MIB, 3 * MIB, MIB)):
        with pytest.raises(RelayProblem, match=r"bad-length|bad-range"):
            client.fetch_part(what, length, first, memoryview(bytearray(size)))
    for first, size in ((1, MIB), (0, MIB + 1), (2 * MIB, 10)):
        with pytest.raises(InternalError, match="not whole blocks"):
            client.fetch_part(what, len(data), first, memoryview(bytearray(size)))
        with pytest.raises(InternalError, match="not whole blocks"):
            client.upload(what, len(data)).write(first, memoryview(bytearray(size)))
