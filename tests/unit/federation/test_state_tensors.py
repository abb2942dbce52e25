"""What a state is made of: one order of bytes for the hash, for a checkpoint and for a site that was away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting
from numpy.typing import NDArray
from thread_ranks import run_ranks

from fedhpc.federation.checkpoint import Checkpoint, Tensors
from fedhpc.federation.session import Session
from fedhpc.federation.state_tensors import (
    TOTAL_WEIGHT,
    arrays_of_checkpoint,
    state_arrays,
    tensors_tree,
    total_bytes,
)
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import TREE_BLOCK_BYTES
from fedhpc.train.checkpoint_files import Hdf5Checkpoints

STRATEGIES = ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "diloco")


def joined(arrays: list[NDArray[Any]]) -> bytes:
    return b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def test_tensors_in_layout_order_then_the_strategys_by_name_then_the_weight_the_rounds_and_the_blind() -> None:
    tensors = {"z": np.float32([1, 2]), "a": np.float64([[3]])}
    outer = {"velocity/z": np.float32([4, 5]), "moment/z": np.float32([6, 7])}
    blind = bytes(range(32))
    data = joined(state_arrays(tensors, outer, 2.5, 9, blind))
    parts = [np.float32([1, 2]), np.float64([3]), np.float32([6, 7]), np.float32([4, 5]), np.array([2.5], "<f8")]
    assert data == b"".join(p.tobytes() for p in parts) + (9).to_bytes(8, "little") + blind
    assert joined(state_arrays(tensors, outer, None, 9, blind)) == data[:-48] + bytes(8) + data[-40:]
    assert total_bytes(state_arrays(tensors, outer, None, 9, blind)) == len(data)


def tensors_of(site: int, dtype: str = "float32") -> Tensors:
    draw = np.random.default_rng(site)
    shapes: dict[str, tuple[int, ...]] = {"weight": (3, 5), "scalar": (), "none": (0, 2), "running": (4,)}
    return {n: np.asarray(draw.standard_normal(s), np.float64 if n == "scalar" else dtype) for n, s in shapes.items()}


def trained(session: Session, rounds: int = 2) -> GlobalModel:
    """A model after some rounds of made-up training, with whatever state its strategy has gathered."""
    model = GlobalModel(session, tensors_of(0), frozenset({"running"}))
    for round_ in range(rounds):
        change = tensors_of(10 * round_ + session.party.number)
        local = {n: t - (change[n] * 2.0**-7).astype(t.dtype) for n, t in model.tensors.items()}
        model.exchange(local, 10 * session.party.number)
    return model


@pytest.mark.parametrize("weights", ["samples", "uniform"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_state_moves_to_another_site_and_to_a_checkpoint_and_back(tmp_path: Path, name: str, weights: str) -> None:
    """Every strategy; 0-d and empty tensors; W and no W. The next round then gives the same bits."""
    meeting = Meeting(3, strategy={"name": name, "weights": weights}, secure={"bound": 64.0})
    store = Hdf5Checkpoints(tmp_path)
    states: list[bytes] = []

    def work(session: Session) -> tuple[str, bytes, bytes]:
        model = trained(session)
        if session.party.number == 1:
            ledger, config = b"", session.party.agreement.hash
            saved = model.saved_outer()
            assert (TOTAL_WEIGHT in saved) == (weights == "samples")
            store.save(Checkpoint(2, session.round_, config, model.tensors, saved, {}, ledger, model.blind))
            assert model.blind != bytes(32)
            states.append(model.state)
        meeting.barrier.wait()
        taken = arrays_of_checkpoint(store.load(2))
        assert joined(taken) == joined(model.arrays())
        assert total_bytes(taken) == total_bytes(model.arrays())
        if session.party.number == 2:  # goes on from what site 1 gave
            other = GlobalModel(session, tensors_of(99), frozenset({"running"}))
            given = np.frombuffer(joined(taken), np.uint8)
            other.take_over(lambda into: into.mine.write(0, given.size, given))
            other.reached = model.reached
            model = other
        if session.party.number == 3:  # goes on from the checkpoint
            loaded = store.load(2)
            other = GlobalModel(session, tensors_of(98), frozenset({"running"}))
            other.restore(loaded.tensors, loaded.outer, loaded.round_, loaded.blind)
            other.reached = model.reached
            model = other
        assert model.rounds == 2
        assert model.state == states[0]
        assert [t.dtype.name for t in model.tensors.values()] == ["float32", "float64", "float32", "float32"]
        local = {n: t - np.ones_like(t) for n, t in model.tensors.items()}
        model.exchange(local, 10 * session.party.number)
        return model.sha256(), model.state, joined(model.arrays())

    found = meeting.run(work)
    assert len(set(found.values())) == 1
    assert [p.purpose for p in meeting.plans].count("weights") == (weights == "samples")  # W came along: not anew


def test_what_was_taken_over_leaves_the_old_tensors_alone() -> None:
    """Local training may still hold them as the base of an older update."""

    def work(session: Session) -> None:
        model = trained(session, 1)
        base = model.base()
        kept = {n: t.copy() for n, t in base.tensors.items()}
        size = total_bytes(model.arrays())
        given = np.arange(size, dtype=np.uint8) % 100
        model.take_over(lambda into: into.mine.write(0, size, given))
        assert all((base.tensors[n] == kept[n]).all() for n in kept)
        assert model.tensors["weight"].tobytes() == bytes(range(60))

    Meeting(3, strategy={"name": "diloco"}, secure={"bound": 64.0}).run(work)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_the_ranks_of_a_site_hash_a_share_each(ranks: int) -> None:
    draw = np.random.default_rng(1)
    arrays = [
        draw.standard_normal(300_000).astype(np.float32),
        np.array(7.5),
        draw.standard_normal((1000, 333)).T,  # not contiguous
        np.zeros((0,), np.float32),
        np.array([3], "<i8"),
    ]
    data = joined(arrays)
    assert len(data) > 3 * TREE_BLOCK_BYTES
    assert set(run_ranks(ranks, lambda site: tensors_tree(site, arrays, SHA256))) == {SHA256.tree(data)}
