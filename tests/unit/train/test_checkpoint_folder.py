"""A checkpoint in a file of every rank: read back by any number of ranks, or found to be damaged."""

from __future__ import annotations

import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thread_ranks import run_ranks

from fedhpc.errors import DataError, StorageError
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.ranges import Held, forms_of
from fedhpc.train import checkpoint_folder, rank_files
from fedhpc.train.checkpoint_arrays import read_arrays, write_arrays
from fedhpc.train.checkpoint_files import Hdf5Checkpoints

DRAW = np.random.default_rng(5)
TENSORS = {
    "wéight": DRAW.standard_normal((7, 5)).astype(np.float32),
    "none": np.zeros((0, 3), np.float32),
    "a/b": DRAW.standard_normal(9),
    "one": np.float32([3.5]),
    "scalar": np.asarray(DRAW.standard_normal()),
}
OUTER = {f"velocity/{name}": tensor * 2 for name, tensor in TENSORS.items()}
PRIVATE = {"random": np.arange(9, dtype=np.uint8)}
PENDING = {"n": np.array(4)}
PARTS = {"exp_avg": {n: TENSORS[n] * 3 for n in ("wéight", "a/b")}, "exp_avg_sq": {"one": np.float32([9.0])}}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_files, "TREE_BLOCK_BYTES", 48)
    monkeypatch.setattr(checkpoint_folder, "_SEEN_WITHIN_S", 0.0)


def held_by(site: Any, cuts: tuple[float, ...]) -> Held:
    total = sum(tensor.size for tensor in TENSORS.values())
    at = [0, *(round(cut * total) for cut in sorted(cuts)), total]
    return Held(site, forms_of(TENSORS), list(itertools.pairwise(at)))


def cut(held: Held, states: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(held.piece(name, state)) for name, state in states.items()}


def write(directory: Path, round_: int = 3, cuts: tuple[float, ...] = (0.3, 0.6), times: int = 1) -> None:
    def work(site: Any) -> None:
        held = held_by(site, cuts)
        outer = {n: np.array(held.piece(n.partition("/")[2], t)) for n, t in OUTER.items()}
        outer["total_weight"] = np.array([2.5])
        tensors = {n: np.asarray(t * times) for n, t in held.pieces(TENSORS).items()}
        private = PRIVATE if site.rank == 0 else {}
        made = Checkpoint(round_, 9, b"c" * 32, tensors, outer, private, b"l" * 32, b"b" * 32, PENDING)
        made.whole, made.held = True, held
        made.exchange, made.signed = "mpi", (b"1", b"2") if site.rank == 0 else ()
        made.parts = {kind: partial(cut, held, states) for kind, states in PARTS.items()}
        Hdf5Checkpoints(directory).save(made)

    run_ranks(len(cuts) + 1, work)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


CUTS = st.lists(st.floats(0, 1), max_size=4).map(tuple)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=CUTS, after=CUTS)
def test_any_number_of_ranks_reads_what_any_number_wrote(
    tmp_path: Path, before: tuple[float, ...], after: tuple[float, ...]
) -> None:
    write(tmp_path, cuts=before)
    store = Hdf5Checkpoints(tmp_path)
    assert store.rounds() == [3]
    whole = store.load(3)
    same(whole.tensors, TENSORS)
    same(whole.outer, OUTER | {"total_weight": np.array([2.5])})
    same(whole.private, PRIVATE)
    same(whole.pending, PENDING)
    assert list(whole.parts) == list(PARTS)
    for kind, states in PARTS.items():
        same(whole.parts[kind](), states)
    assert (whole.round_, whole.sums, whole.whole, whole.config) == (3, 9, True, b"c" * 32)
    assert (whole.ledger, whole.blind) == (b"l" * 32, b"b" * 32)
    assert (whole.exchange, whole.signed) == ("mpi", (b"1", b"2"))

    def work(site: Any) -> None:
        held = held_by(site, after)
        found = Hdf5Checkpoints(tmp_path).load(3, held)
        same(found.tensors, held.pieces(TENSORS))
        outer = {n: np.array(held.piece(n.partition("/")[2], t)) for n, t in OUTER.items()}
        same(found.outer, outer | {"total_weight": np.array([2.5])})
        same(found.private, PRIVATE if site.rank == 0 else {})
        same(found.pending, PENDING)
        for kind, states in PARTS.items():
            same(found.parts[kind](), cut(held, states))

    run_ranks(len(after) + 1, work)


def test_a_file_of_one_rank_is_read_by_several(tmp_path: Path) -> None:
    Hdf5Checkpoints(tmp_path).save(Checkpoint(3, 9, b"c" * 32, TENSORS, OUTER, PRIVATE))

    def work(site: Any) -> None:
        held = held_by(site, (0.2, 0.4))
        same(Hdf5Checkpoints(tmp_path).load(3, held).tensors, held.pieces(TENSORS))

    run_ranks(3, work)
    write(tmp_path)  # the round again, by three ranks: the file of one goes
    assert [path.name for path in tmp_path.iterdir()] == ["round-000003"]
    Hdf5Checkpoints(tmp_path).save(Checkpoint(3, 9, b"c" * 32, TENSORS, OUTER, PRIVATE))
    assert [path.name for path in tmp_path.iterdir()] == ["round-000003.h5"]


def test_two_are_kept_and_newer_ones_are_discarded(tmp_path: Path) -> None:
    for round_ in range(4):
        write(tmp_path, round_)
    store = Hdf5Checkpoints(tmp_path)
    assert store.rounds() == [2, 3]
    (tmp_path / "round-000009").mkdir()  # a killed writer's: no index
    store.discard_after(2)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000002"]
    names = {path.name for path in (tmp_path / "round-000002").iterdir()}
    of_ranks = (f"{kind}-{r:04d}-of-0003.h5" for kind in ("rank", "exp_avg", "exp_avg_sq") for r in range(3))
    assert names == {"index.h5", "private.h5", *of_ranks}
    write(tmp_path, 2, cuts=(0.5,))
    assert len(list((tmp_path / "round-000002").iterdir())) == 8, "those of three ranks are gone"


def damage(folder: Path, how: str) -> None:
    first, second = folder / "rank-0000-of-0003.h5", folder / "rank-0001-of-0003.h5"
    if how == "missing":
        second.unlink()
    elif how == "swapped":
        first.rename(folder / "x")
        second.rename(first)
        (folder / "x").rename(second)
    elif how == "of another round":
        (folder.parent / "round-000002" / second.name).replace(second)
    elif how == "short":
        second.write_bytes(second.read_bytes()[:-60])
    elif how == "no index":
        (folder / "index.h5").unlink()
    elif how == "a state's missing":
        (folder / "exp_avg-0001-of-0003.h5").unlink()
    elif how == "states swapped":
        (folder / "exp_avg-0000-of-0003.h5").replace(folder / "exp_avg-0001-of-0003.h5")
    elif how == "private of another round":
        (folder.parent / "round-000002" / "private.h5").replace(folder / "private.h5")
    else:
        content = bytearray(second.read_bytes())
        at = content.index(TENSORS["wéight"].tobytes()[60:64])
        content[at] ^= 1
        second.write_bytes(content)


@pytest.mark.parametrize(
    "how",
    [
        *("missing", "swapped", "of another round", "short", "no index", "private of another round", "one bit"),
        *("a state's missing", "states swapped"),
    ],
)
def test_a_round_that_is_not_whole_is_not_there(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 2, times=2)
    monkeypatch.setitem(PRIVATE, "random", np.arange(9, dtype=np.uint8)[::-1].copy())
    write(tmp_path, 3)
    store = Hdf5Checkpoints(tmp_path)
    assert store.rounds() == [2, 3]
    damage(tmp_path / "round-000003", how)
    expected = [] if "another round" in how else [2]
    assert store.rounds() == expected
    assert Hdf5Checkpoints(tmp_path).rounds() == expected
    words = {"missing": "does not exist", "no index": "does not exist", "short": "damaged|cut short"}
    if "state" in how:
        with pytest.raises(DataError, match=r"does not exist|is not the one|bytes, not"):
            store.load(3).parts["exp_avg"]()
        return
    with pytest.raises(DataError, match=words.get(how, "is not the one|SHA-256")):
        store.load(3)


def retold(index: Path, tensors: dict[str, list[int]]) -> None:
    """The index, whose own SHA-256 is right, with other shapes."""
    stored = read_arrays(index, (3,), ("pending",))
    shapes = [[name, kind, tensors.get(name, shape)] for name, kind, shape in stored.facts["tensors"]]
    index.unlink()
    write_arrays(index, 3, stored.facts | {"tensors": shapes}, {"pending": stored.groups["pending"]})


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({"a/b": [10]}, id="more than the files hold"),
        pytest.param({"a/b": [10**15]}, id="more than any memory holds"),
        pytest.param({"a/b": [8]}, id="less"),
        pytest.param({"a/b": [-9], "wéight": [-7, -5]}, id="negative"),
    ],
)
def test_an_index_that_tells_of_another_model_than_the_files_is_damaged(
    tmp_path: Path, tensors: dict[str, list[int]]
) -> None:
    """Its own SHA-256 is right: nothing is made of the size that it tells."""
    write(tmp_path)
    retold(tmp_path / "round-000003" / "index.h5", tensors)
    store = Hdf5Checkpoints(tmp_path)
    assert store.rounds() == []
    with pytest.raises(DataError, match=r"is damaged|bytes, not"):
        store.load(3)


@pytest.mark.parametrize("shape", [[7], [10**15], [0]], ids=str)
def test_the_last_tensor_must_end_where_the_files_do(
    tmp_path: Path, shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing follows it where the strategy has no state of its own."""
    monkeypatch.setattr(sys.modules[__name__], "OUTER", {})
    monkeypatch.setattr(sys.modules[__name__], "PARTS", {})
    write(tmp_path)
    retold(tmp_path / "round-000003" / "index.h5", {"scalar": shape})
    store = Hdf5Checkpoints(tmp_path)
    assert store.rounds() == []
    with pytest.raises(DataError, match=r"is damaged|bytes, not"):
        store.load(3)


def test_every_rank_is_told_of_damage(tmp_path: Path) -> None:
    write(tmp_path)
    damage(tmp_path / "round-000003", "one bit")

    def work(site: Any) -> None:
        with pytest.raises(DataError, match="SHA-256"):
            Hdf5Checkpoints(tmp_path).load(3, held_by(site, (0.3, 0.6)))

    run_ranks(3, work)


def test_another_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path)

    def work(site: Any) -> None:
        forms = forms_of(TENSORS | {"one": np.zeros(2, np.float32)})
        with pytest.raises(DataError, match="another model than this task builds"):
            Hdf5Checkpoints(tmp_path).load(3, Held(site, forms, [(0, 10), (10, sum(f.size for f in forms.values()))]))

    run_ranks(2, work)


def test_folders_of_a_nodes_own_are_refused_on_every_rank(tmp_path: Path) -> None:
    def work(site: Any) -> None:
        held = held_by(site, (0.5,))
        checkpoint = Checkpoint(3, 9, b"c" * 32, held.pieces(TENSORS), held=held)
        with pytest.raises(StorageError, match=r"rank 1: does not see what the leader .* writes"):
            Hdf5Checkpoints(tmp_path / str(site.rank)).save(checkpoint)

    run_ranks(2, work)
    assert Hdf5Checkpoints(tmp_path / "0").rounds() == []


def test_a_rank_that_cannot_write_is_named_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 2)
    real = checkpoint_folder.write_rank

    def full(path: Path, *more: Any) -> bytes:
        if "rank-0001" in path.name:
            raise StorageError(f"cannot write {path}: No space left on device", "free space")
        return real(path, *more)

    monkeypatch.setattr(checkpoint_folder, "write_rank", full)
    with pytest.raises(StorageError, match=r"rank 1: cannot write .*No space left"):
        write(tmp_path, 3)
    assert Hdf5Checkpoints(tmp_path).rounds() == [2]
