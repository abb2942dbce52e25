"""The outbox: what is kept comes back to the last bit, nothing else does, and nobody else reads it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from thread_ranks import run_ranks

from fedhpc.errors import DataError, StorageError
from fedhpc.federation.ranges import Held, forms_of
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.rounds.interfaces import LocalResult, LocalWork
from fedhpc.rounds.outbox import BLOCK_BYTES, FileOutbox, outbox_key
from fedhpc.secure.transcript import u64

CONFIG, KEY, STATE = b"c" * 32, b"k" * 32, b"s" * 32
HEAD = len(b"fedhpc outbox 1\n") + 32 + 8
KINDS = st.sampled_from(
    ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", ">f4", ">i8"]
)
ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=12),
    KINDS.flatmap(lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=4,
)


def box(folder: Path, config: bytes = CONFIG, key: bytes = KEY) -> FileOutbox:
    return FileOutbox(folder / "outbox", config, key, SerialGroup())


def work(**changes: Any) -> LocalWork:
    own = {
        "state": STATE,
        "round_": 3,
        "result": LocalResult(41, 7, 0.1 + 0.2, 1.5),
        "measured": {"n": np.array(10)},
        "tensors": {"weight": np.arange(12, dtype=np.float32).reshape(3, 4)},
        "private": {"random": np.arange(5, dtype=np.uint8)},
        "averaged": frozenset({"running"}),
    }
    return LocalWork(**(own | changes))


def same(one: LocalWork, two: LocalWork | None) -> None:
    assert two is not None
    for field in ("state", "round_", "result", "averaged"):
        assert getattr(one, field) == getattr(two, field), field
    for group in ("measured", "tensors", "private"):
        mine, theirs = getattr(one, group), getattr(two, group)
        assert list(mine) == list(theirs)
        for name, array in mine.items():
            assert theirs[name].shape == array.shape, (group, name)
            assert theirs[name].dtype == array.dtype.newbyteorder("<"), (group, name)
            assert theirs[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes(), (group, name)
            assert theirs[name].flags.writeable


@settings(deadline=None, max_examples=60)
@given(measured=ARRAYS, tensors=ARRAYS, private=ARRAYS, loss=st.floats(allow_nan=False), whole=st.booleans())
def test_everything_comes_back(
    tmp_path_factory: pytest.TempPathFactory, measured: Any, tensors: Any, private: Any, loss: float, whole: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    kept = work(measured=measured, tensors=tensors, private=private, result=LocalResult(9, 2, loss, 0.25, whole=whole))
    box(folder).keep(kept)
    same(kept, box(folder).find(STATE))
    same(kept, box(folder).newest())


@pytest.mark.parametrize("size", [BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_arrays_over_blocks(tmp_path: Path, size: int) -> None:
    """Also arrays that are not contiguous, and several in one block."""
    draw = np.random.default_rng(size)
    tensors = {
        "one": draw.integers(0, 256, size, dtype=np.uint8),
        "two": draw.standard_normal((70, 90)).T,
        "three": draw.standard_normal(100)[::3],
    }
    box(tmp_path).keep(work(tensors=tensors))
    same(work(tensors=tensors), box(tmp_path).find(STATE))


def test_only_work_from_the_state_is_found(tmp_path: Path) -> None:
    outbox = box(tmp_path)
    assert outbox.find(STATE) is None
    assert outbox.newest() is None
    outbox.keep(work())
    assert outbox.find(b"t" * 32) is None
    same(work(), outbox.newest())
    outbox.keep(work(state=b"t" * 32, round_=4))
    assert outbox.find(STATE) is None
    same(work(state=b"t" * 32, round_=4), outbox.find(b"t" * 32))
    outbox.clear()
    assert outbox.newest() is None
    outbox.clear()


def test_it_says_what_it_holds_without_reading_all_of_it(tmp_path: Path) -> None:
    """Only the index has to be whole for that; damage behind it is found by `find`."""
    outbox = box(tmp_path)
    assert not outbox.holds(STATE)
    outbox.keep(work())
    assert outbox.holds(STATE)
    assert not outbox.holds(b"t" * 32)
    whole = outbox.path.read_bytes()
    outbox.path.write_bytes(whole[:-1])
    assert outbox.holds(STATE)
    outbox.path.write_bytes(whole[: HEAD + 5])
    with pytest.raises(DataError, match="damaged"):
        outbox.holds(STATE)
    outbox.clear()
    assert not outbox.holds(STATE)


@pytest.mark.parametrize(
    ("config", "key"),
    [(b"d" * 32, KEY), (CONFIG, b"l" * 32), (CONFIG, outbox_key(b"k" * 32, CONFIG))],
    ids=["federation", "key", "derived"],
)
def test_another_federation_or_site_is_refused(tmp_path: Path, config: bytes, key: bytes) -> None:
    box(tmp_path).keep(work())
    with pytest.raises(DataError, match="of another site or federation") as refused:
        box(tmp_path, config, key).find(STATE)
    assert "remove it" in str(refused.value.hint)


def test_keys_differ_by_site_and_federation() -> None:
    assert len({outbox_key(a, b) for a in (b"1" * 32, b"2" * 32) for b in (b"3" * 32, b"4" * 32)}) == 4


def test_it_is_refused_when_cut_anywhere(tmp_path: Path) -> None:
    """At every byte of the head, at both sides of every block's end, and in between."""
    outbox = box(tmp_path)
    outbox.keep(work(tensors={"w": np.zeros(2 * BLOCK_BYTES + 100, np.uint8)}))
    whole = outbox.path.read_bytes()
    index = HEAD + int.from_bytes(whole[HEAD - 8 : HEAD], "little") + 16
    ends = [index, index + BLOCK_BYTES + 16, index + 2 * (BLOCK_BYTES + 16), len(whole)]
    cuts = {*range(HEAD + 2), *(end + d for end in ends for d in (-17, -16, -1, 0, 1, 500))} - {len(whole)}
    for cut in sorted(c for c in cuts if c < len(whole)):
        outbox.path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="damaged"):
            outbox.find(STATE)
    outbox.path.write_bytes(whole + b"x")
    with pytest.raises(DataError, match="damaged"):
        outbox.find(STATE)


def test_no_bit_may_change(tmp_path: Path) -> None:
    outbox = box(tmp_path)
    outbox.keep(work())
    whole = bytearray(outbox.path.read_bytes())
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        outbox.path.write_bytes(changed)
        with pytest.raises(DataError, match="damaged"):
            outbox.find(STATE)


def test_blocks_stand_in_their_order(tmp_path: Path) -> None:
    """Two blocks that are swapped, repeated, or taken from a file of the same arrays."""
    outbox, size = box(tmp_path), BLOCK_BYTES + 16
    files = []
    for _ in range(2):
        outbox.keep(work(tensors={"w": np.zeros(3 * BLOCK_BYTES, np.uint8)}, measured={}, private={}))
        files.append(outbox.path.read_bytes())
    first, other = files
    at = len(first) - 3 * size
    one, two, three = (first[at + i * size : at + (i + 1) * size] for i in range(3))
    foreign = other[len(other) - 3 * size : len(other) - 2 * size]
    for blocks in ((two, one, three), (one, one, three), (one, three, two), (foreign, two, three)):
        outbox.path.write_bytes(first[:at] + b"".join(blocks))
        with pytest.raises(DataError, match="damaged"):
            outbox.find(STATE)
    outbox.path.write_bytes(first)
    assert outbox.find(STATE) is not None


@pytest.mark.parametrize("length", [(16 << 20) + 1, 1 << 40, (1 << 64) - 1])
def test_a_length_that_cannot_be_is_refused_before_memory_is_taken(tmp_path: Path, length: int) -> None:
    outbox = box(tmp_path)
    outbox.keep(work())
    whole = outbox.path.read_bytes()
    outbox.path.write_bytes(whole[: HEAD - 8] + u64(length) + whole[HEAD:])
    with pytest.raises(DataError, match=f"an index of {length} bytes"):
        outbox.find(STATE)


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask, and neither values nor names in it; two files of one work share nothing."""
    canary = np.frombuffer(b"CANARYcanary" * 1000, np.uint8)
    previous = os.umask(0)
    try:
        box(tmp_path).keep(work(tensors={"secret-layer": canary}, private={"secret-optimiser": canary}))
    finally:
        os.umask(previous)
    outbox = box(tmp_path)
    assert outbox.path.stat().st_mode & 0o777 == 0o600
    assert outbox.path.parent.stat().st_mode & 0o777 == 0o700
    first = outbox.path.read_bytes()
    for word in (b"CANARY", b"secret", b"whole", b"random", STATE.hex().encode(), STATE):
        assert word not in first
    outbox.keep(work(tensors={"secret-layer": canary}, private={"secret-optimiser": canary}))
    second = outbox.path.read_bytes()
    assert not {first[i : i + 16] for i in range(HEAD - 40, len(first) - 16)} & {
        second[i : i + 16] for i in range(HEAD - 40, len(second) - 16)
    }


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that fills up: writes beyond `size` bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_keeps_the_old_work(tmp_path: Path) -> None:
    outbox = box(tmp_path)
    outbox.keep(work())
    with files_of_at_most(BLOCK_BYTES + 5000), pytest.raises(StorageError, match="cannot write") as full:
        outbox.keep(work(round_=4, tensors={"w": np.zeros(2 * BLOCK_BYTES, np.uint8)}))
    assert full.value.exit_code == 74
    same(work(), outbox.find(STATE))
    assert [path.name for path in outbox.path.parent.iterdir()] == ["local.work"]


def test_a_folder_that_cannot_be_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file where the folder belongs")
    for call in (lambda o: o.keep(work()), lambda o: o.find(STATE), lambda o: o.clear()):
        with pytest.raises(StorageError):
            call(box(tmp_path))


@pytest.mark.parametrize("kept", [work(), work(result=LocalResult(0, 0, 0.0, 0.0, whole=False)), None])
def test_the_leaders_word_holds_for_all_ranks(tmp_path: Path, kept: LocalWork | None) -> None:
    """The other ranks see another directory, as a node with old entries in its cache does."""
    stale = box(tmp_path / "other")
    (tmp_path / "other").mkdir()
    stale.keep(work(round_=99))
    if kept is not None:
        box(tmp_path).keep(kept)

    def rank(site: Any) -> tuple[LocalWork | None, bool]:
        folder = tmp_path if site.rank == 0 else tmp_path / "other"
        outbox = FileOutbox(folder / "outbox", CONFIG, KEY, site)
        found = outbox.find(STATE, Held(site, forms_of(work().tensors))), outbox.holds(STATE)
        if site.rank:
            outbox.keep(work(round_=77))
            outbox.clear()
        return found

    for number, (found, held) in enumerate(run_ranks(3, rank)):
        assert held == (kept is not None)
        if kept is None:
            assert found is None
        else:
            same(kept if number == 0 else dataclasses.replace(kept, private={}), found)
    assert stale.newest() is not None  # only the leader writes and removes
    assert stale.newest().round_ == 99  # type: ignore[union-attr]


def held_by(site: Any, *cuts: int) -> Held:
    return Held(site, forms_of(MODEL), list(itertools.pairwise((0, *cuts, 150_016))))


MODEL = {
    "weight": np.random.default_rng(3).standard_normal((300, 500)).astype(np.float32),
    "bias": np.random.default_rng(4).standard_normal(16),
}


@pytest.mark.parametrize("cuts", [(100_000,), (0, 150_000), (), (7, 8, 9)])
def test_work_of_ranks_that_hold_a_part_each(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Kept by two, found by any number; the file is that of one rank."""
    kept = work(tensors=MODEL)

    def keep(site: Any) -> None:
        held = held_by(site, 70_001)
        private = kept.private if site.rank == 0 else {}
        outbox = FileOutbox(tmp_path / "outbox", CONFIG, KEY, site)
        outbox.keep(dataclasses.replace(kept, tensors=held.pieces(MODEL), private=private, held=held))

    run_ranks(2, keep)
    same(kept, box(tmp_path).find(STATE))

    def find(site: Any) -> None:
        outbox, held = FileOutbox(tmp_path / "outbox", CONFIG, KEY, site), held_by(site, *cuts)
        assert outbox.holds(STATE)
        assert outbox.find(b"t" * 32, held) is None
        found, private = outbox.find(STATE, held), kept.private if site.rank == 0 else {}
        same(dataclasses.replace(kept, tensors=held.pieces(MODEL), private=private), found)
        newest = outbox.newest()
        assert newest is not None
        assert newest.forms == forms_of(MODEL)
        assert not newest.tensors
        with pytest.raises(DataError, match="another model"):
            outbox.find(STATE, Held(site, forms_of({"weight": MODEL["weight"]})))

    if cuts:
        run_ranks(len(cuts) + 1, find)
