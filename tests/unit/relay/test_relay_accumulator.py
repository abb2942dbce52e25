"""The sum that grows while vectors arrive, against the plain sum: any order, repeats, losses, little memory."""

from __future__ import annotations

import errno
import itertools
import random
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_fakes import CONFIG, federation

from fedhpc.relay.metrics import Metrics
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds.accumulator import Accumulator
from fedhpc.relay.rounds.block_memory import BlockMemory
from fedhpc.relay.rounds.federation_rounds import FederationRounds
from fedhpc.relay.store.kept_attempt import KeptAttempt
from fedhpc.relay.store.object_store import Quota, Store
from fedhpc.secure.geometry import Geometry
from fedhpc.secure.suite import SHA256
from fedhpc.wire.object_names import ObjectName

MIB = 1 << 20
SITES = (1, 2, 3, 4)
TENSORS = [(32, MIB // 4 + 3), (64, MIB // 8 + 1), (32, MIB // 4)]  # four blocks, with gaps
GEOMETRY = Geometry(TENSORS)
BLOCKS = -(-GEOMETRY.nbytes // MIB)
VECTORS = {u: np.random.default_rng(u).bytes(GEOMETRY.nbytes) for u in SITES}  # gaps too: a site may fill them


def plain_sum(sites: Iterable[int]) -> bytes:
    total = np.zeros(GEOMETRY.nbytes, np.uint8)
    for u in sites:
        vector = np.frombuffer(VECTORS[u], np.uint8)
        for low, high, bits in [(s.start, s.stop, TENSORS[s.tensor][0]) for s in GEOMETRY.stretches(0, total.size)]:
            total[low:high].view(f"<u{bits // 8}")[:] += vector[low:high].view(f"<u{bits // 8}")
    return total.tobytes()


class Disk:
    """The objects of an attempt: copies as far as they came, and Y. `fails` may raise before Y is written or read."""

    suite = SHA256

    def __init__(self) -> None:
        self.copies: dict[str, bytes] = {}
        self.sum = bytearray()
        self.fails: Callable[[str], None] = lambda what: None
        self.reads: list[str] = []
        self.growing = threading.Lock()

    def get(self, name: str) -> bytes | None:
        raise AssertionError(name)

    def put(self, name: str, data: bytes) -> None:
        raise AssertionError(name)

    def names(self) -> list[str]:
        return list(self.copies)

    def size(self, name: str) -> int:
        return len(self.copies[name])

    def tree(self, name: str) -> bytes:
        return SHA256.tree(self.copies[name])

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        self.fails(name)
        self.reads.append(name)
        if name not in self.copies:
            raise FileNotFoundError(name)
        view[:] = self.copies[name][offset : offset + len(view)]

    def make(self, name: str, length: int) -> None:
        assert (name, length) == ("Y", GEOMETRY.nbytes)

    def read_made(self, name: str, offset: int, view: memoryview) -> None:
        assert name == "Y"
        self.fails("read Y")
        view[:] = self.sum[offset : offset + len(view)]

    def write(self, name: str, offset: int, data: memoryview) -> None:
        assert name == "Y"
        with self.growing:
            self.sum.extend(bytes(max(0, offset + len(data) - len(self.sum))))
        half = len(data) // 2
        self.sum[offset : offset + half] = data[:half]
        self.fails("write Y")
        self.sum[offset + half : offset + len(data)] = data[half:]

    def keep(self, name: str, tree: bytes) -> None:
        raise AssertionError(name)

    def unmake(self, name: str) -> None:
        raise AssertionError(name)


class Game:
    """Sites whose vectors arrive at an accumulator with `blocks` of memory."""

    def __init__(self, blocks: int = 8) -> None:
        self.disk, self.memory = Disk(), BlockMemory(blocks)
        self.sum = Accumulator(self.disk, TENSORS, SITES, self.memory)

    def arrive(self, site: int, index: int, source: object = "upload") -> None:
        self.disk.copies[f"M3v/{site}"] = VECTORS[site]
        self.sum.add(site, source, index, memoryview(VECTORS[site])[index * MIB : (index + 1) * MIB])

    def ends_with(self, sites: Iterable[int]) -> None:
        expected = plain_sum(sites)
        for u in sites:
            self.disk.copies[f"M3v/{u}"] = VECTORS[u]
        assert self.sum.finish(sites) == SHA256.tree(expected)
        assert bytes(self.disk.sum) == expected
        assert self.sum.finish(sites) == SHA256.tree(expected), "a step that failed behind it comes here again"
        self.sum.close()
        assert self.memory._out == 0, "all memory is given back"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_any_losses_any_memory(data: st.DataObject) -> None:
    game = Game(data.draw(st.integers(0, 6), label="blocks of memory"))
    every = list(itertools.product(SITES, range(BLOCKS)))
    came = data.draw(st.permutations(every), label="order")[: data.draw(st.integers(0, len(every)), label="came")]
    again = data.draw(st.lists(st.sampled_from(every), max_size=6), label="repeats")
    for site, index in [*came, *(b for b in again if b in came)]:
        game.arrive(site, index)
    game.ends_with(data.draw(st.sets(st.sampled_from(SITES), min_size=1), label="survivors"))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_fails_is_made_from_the_copies(data: st.DataObject) -> None:
    """A full disk, a read error or no memory at any moment costs that block its sum, and nobody notices."""
    game = Game(data.draw(st.integers(0, 3)))
    chance = random.Random(data.draw(st.integers(0, 1 << 30)))
    kinds = (OSError(errno.ENOSPC, "full"), Problem("disk-full", "full"), MemoryError(), OSError(errno.EIO, "broken"))

    def fails(what: str) -> None:
        if what.endswith("Y") and chance.random() < 0.3:
            raise chance.choice(kinds)

    game.disk.fails = fails
    for site, index in data.draw(st.permutations(list(itertools.product(SITES, range(BLOCKS))))):
        game.arrive(site, index)
    sites = data.draw(st.sets(st.sampled_from(SITES), min_size=1))
    for _ in range(3):  # steps that fail
        try:
            game.sum.finish(sites)
        except (OSError, Problem, MemoryError):
            continue
    game.disk.fails = lambda what: None
    game.ends_with(sites)


def test_a_sum_without_losses_reads_no_vector_back() -> None:
    game = Game()
    for index in range(BLOCKS):
        for site in SITES:
            game.arrive(site, index)
    game.ends_with(SITES)
    assert game.disk.reads == []


def test_a_loss_is_taken_out_by_its_own_copy_where_that_is_less() -> None:
    game = Game()
    for site, index in itertools.product(SITES, range(BLOCKS)):
        if (site, index) != (3, BLOCKS - 1):
            game.arrive(site, index)
    game.ends_with((1, 2, 4))
    assert set(game.disk.reads) == {"M3v/3"}


def test_a_loss_whose_copy_is_gone_has_the_others_added_anew() -> None:
    game = Game()
    for site, index in itertools.product(SITES, range(BLOCKS)):
        game.arrive(site, index)
    del game.disk.copies["M3v/3"]
    game.ends_with((1, 2, 4))


def test_an_upload_that_was_begun_anew_may_have_other_bytes() -> None:
    game = Game()
    VECTORS[4], honest = bytes(GEOMETRY.nbytes), VECTORS[4]
    game.arrive(4, 0, "first")
    VECTORS[4] = honest
    for site, index in itertools.product(SITES, range(BLOCKS)):
        game.arrive(site, index, "second" if site == 4 else "upload")
    game.ends_with(SITES)


def test_a_block_that_comes_after_the_end_changes_nothing() -> None:
    game = Game()
    for site in (1, 2, 3):
        for index in range(BLOCKS):
            game.arrive(site, index)
    assert game.sum.finish((1, 2, 3)) == SHA256.tree(plain_sum((1, 2, 3)))
    game.arrive(4, 0)
    game.ends_with((1, 2, 3))


def test_many_connections_at_once() -> None:
    for blocks in (0, 1, 8):
        game = Game(blocks)
        for u in SITES:
            game.disk.copies[f"M3v/{u}"] = VECTORS[u]

        def bring(site: int, game: Game = game) -> None:
            for index in random.Random(site).sample(range(BLOCKS), BLOCKS):
                game.arrive(site, index)
                game.arrive(site, index)

        threads = [threading.Thread(target=bring, args=(u,)) for u in (*SITES, *SITES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        game.ends_with(SITES)


def test_memory_is_used_again_and_has_a_bound() -> None:
    memory = BlockMemory(2)
    first, second = memory.take(needed=False), memory.take(needed=False)
    assert first is not None
    assert second is not None
    assert memory.take(needed=False) is None
    third = memory.take(needed=True)
    assert third is not None
    for block in (first, second, third):
        memory.give(block)
    assert len(memory._free) == 2
    assert any(memory.take(needed=False) is block for block in (first, second, third))


# --- over the real store


def bring(store: Store, sum_: Accumulator | None, site: int, indices: Iterable[int]) -> None:
    name = ObjectName(CONFIG, 1, 1, f"M3v/{site}")
    upload = store.begin(name, GEOMETRY.nbytes, Quota(1 << 30, 1000, 4), SHA256)
    for index in indices:
        block = memoryview(VECTORS[site])[index * MIB : (index + 1) * MIB]
        if upload.write_block(index, block) and sum_ is not None:
            sum_.add(site, upload, index, block)
    if not upload.missing():
        upload.declare_tree(SHA256.tree(VECTORS[site]))
        assert store.finish(upload)


@pytest.mark.parametrize("killed", [False, True])
def test_a_relay_that_starts_again_finds_all_in_the_copies(tmp_path: Path, killed: bool) -> None:
    """Three vectors, one of which ends in the second life, and a fourth that never does."""
    store = Store(tmp_path)
    objects = KeptAttempt(store, (CONFIG, 1, 1), SHA256)
    sum_ = Accumulator(objects, TENSORS, SITES, BlockMemory(1))
    for site, indices in ((1, range(BLOCKS)), (2, range(BLOCKS)), (3, (0, 2)), (4, (1,))):
        bring(store, sum_, site, indices)
    folder = tmp_path / CONFIG / "1" / "1"
    assert list(folder.glob("Y.*.own")), "what found no room in memory"
    if killed:
        store.close()
        store = Store(tmp_path)
        assert not list(folder.glob("*.own"))
        objects = KeptAttempt(store, (CONFIG, 1, 1), SHA256)
        sum_ = Accumulator(objects, TENSORS, SITES, BlockMemory(1))
    bring(store, sum_, 3, range(BLOCKS))
    with pytest.raises(Problem, match="other bytes"):
        store.begin(ObjectName(CONFIG, 1, 1, "M3v/4"), GEOMETRY.nbytes, Quota(1 << 30, 1000, 4), SHA256).write_block(
            1, memoryview(VECTORS[3])[MIB : 2 * MIB]
        )
    expected = plain_sum((1, 2, 3))
    assert sum_.finish((1, 2, 3)) == SHA256.tree(expected)
    objects.keep("Y", SHA256.tree(expected))
    assert (folder / "Y").read_bytes() == expected
    sum_.close()
    store.close()


def test_a_sum_that_is_closed_is_not_written_over_by_its_successor(tmp_path: Path) -> None:
    """After a change of the roster vectors go on to arrive while the sum is still closed by those before."""
    store = Store(tmp_path)
    before, after = (KeptAttempt(store, (CONFIG, 1, 1), SHA256) for _ in range(2))
    first = Accumulator(before, TENSORS, SITES, BlockMemory(1))
    for site in (1, 2, 3):
        bring(store, first, site, range(BLOCKS))
    tree = first.finish((1, 2, 3))
    second = Accumulator(after, TENSORS, SITES, BlockMemory(1))
    bring(store, second, 4, range(BLOCKS))
    before.keep("Y", tree)
    assert (tmp_path / CONFIG / "1" / "1" / "Y").read_bytes() == plain_sum((1, 2, 3))
    before.unmake("Y")
    assert second.finish(SITES) == SHA256.tree(plain_sum(SITES))
    for sum_, objects in ((first, before), (second, after)):
        sum_.close()
        objects.unmake("Y")
    assert not list(tmp_path.glob("*/*/*/*.own"))
    store.close()


def test_other_bytes_are_refused_though_the_copy_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed sync all blocks are asked for again. They were added: the sum holds with the same bytes only."""
    store = Store(tmp_path)
    sum_ = Accumulator(KeptAttempt(store, (CONFIG, 1, 1), SHA256), TENSORS, SITES, BlockMemory())
    for site in (1, 2, 3):
        bring(store, sum_, site, range(BLOCKS))
    upload = store.begin(ObjectName(CONFIG, 1, 1, "M3v/4"), GEOMETRY.nbytes, Quota(1 << 30, 1000, 4), SHA256)
    bring(store, sum_, 4, range(BLOCKS - 1))

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    block = memoryview(VECTORS[4])[(BLOCKS - 1) * MIB :]
    assert upload.write_block(BLOCKS - 1, block)
    sum_.add(4, upload, BLOCKS - 1, block)
    upload.declare_tree(SHA256.tree(VECTORS[4]))
    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", broken)
        with pytest.raises(OSError, match="lost"):
            store.finish(upload)
    assert upload.missing() == [(0, GEOMETRY.nbytes)]
    with pytest.raises(Problem, match="other bytes"):
        upload.write_block(0, memoryview(VECTORS[3])[:MIB])
    bring(store, sum_, 4, range(BLOCKS))
    assert sum_.finish(SITES) == SHA256.tree(plain_sum(SITES))
    sum_.close()
    store.close()


def test_nothing_is_added_where_nobody_waits(tmp_path: Path) -> None:
    rounds = FederationRounds(Store(tmp_path), federation(4), Metrics())
    for name in ("M3v/1", "M3/1", "Y"):
        assert rounds.arriving(ObjectName(CONFIG, 1, 1, name)) is None
