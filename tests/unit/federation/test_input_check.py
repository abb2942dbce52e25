"""What the ledger knows numbers by: the same in any lanes, scale, share and round; another for other numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from federation_fakes import FakeSums, Meeting, agreement_of, party_of, session_of
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import run_ranks

from fedhpc.app.federation import Federation
from fedhpc.federation.input_check import inspect, source_tags
from fedhpc.federation.party import Checked, SumKind, Summed, SumPlan
from fedhpc.federation.session import Session
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector, parts
from fedhpc.mpi.collectives import Group, SerialGroup
from fedhpc.secure.ledger import FINGERPRINT_BLOCK_BYTES, UNKNOWN, ZERO_VALUE, Mark, ledger_keys
from fedhpc.secure.ring import Layout, Tensor

RNG = np.random.default_rng(1)
PARTY = party_of(agreement_of(3), 1)
OTHER = party_of(agreement_of(4), 1)


def mark(
    arrays: dict[str, Any], *, wide: bool = False, scale: int = 3, party: Any = PARTY, round_: int = 1, **plan: Any
) -> Mark:
    """Of float tensors in lanes of their own width, or all in 64-bit lanes."""
    kinds = {n: "float64" if wide else a.dtype.name for n, a in arrays.items()}
    layout = Layout([Tensor(n, kinds[n], a.shape, scale) for n, a in arrays.items()], salted=True)
    vector = Vector(layout)
    vector.sources = {n: a.dtype.name for n, a in arrays.items() if wide}
    vector.fill(arrays)
    full = {"purpose": "train", "kind": SumKind.TRAINING, "state": bytes(32), "category": "train"} | plan
    return inspect(party, vector, SumPlan(round_, **full), [(0, layout.nbytes)])


def model(rows: int = 5) -> dict[str, Any]:
    return {"a": RNG.normal(size=(rows, 3)).astype(np.float32), "b": RNG.normal(size=7).astype(np.float32)}


def test_lanes_scale_share_and_round_do_not_count() -> None:
    arrays = model()
    first = mark(arrays)
    others = [
        mark(arrays, wide=True), mark(arrays, scale=9), mark(arrays, round_=8), mark(arrays, purpose="again"),
        mark(arrays, base=b"b" * 32), mark(arrays, state=b"s" * 32), mark(arrays, factors={"a": 0.25, "b": 0.25}),
        mark(arrays, category="weights", everyone=True),
    ]  # fmt: skip
    assert {m.value for m in others} == {first.value}
    assert len(first.value) == 32
    assert first.value != ZERO_VALUE
    # What a repeat is known by has layout and factors in it, as before.
    assert first.fingerprint == others[2].fingerprint
    assert len({first.fingerprint, others[0].fingerprint, others[1].fingerprint, others[6].fingerprint}) == 4


class Noting(FakeSums):
    """Notes by what the ledger would know each sum of site 1."""

    values: dict[str, bytes]

    def open(self, checked: Checked, stages: Stages) -> Summed:
        if self._party.number == 1:
            self.values[checked.plan.purpose] = checked.mark.value
        return super().open(checked, stages)


@pytest.mark.parametrize("numbers", [np.array([104, -7]), np.array([1.5, 0.25]), np.array([True, False])])
def test_a_sum_a_mean_and_a_weighted_mean_of_the_same_array_are_the_same_numbers(numbers: Any) -> None:
    meeting, values = Meeting(3), {}  # type: ignore[var-annotated]

    def work(session: Session) -> None:
        mine = session_of(session.party, type("Noted", (Noting,), {"values": values})(meeting, session.party))
        Federation(mine).sum({"n": numbers}, name="sum", bound=200.0)
        Federation(mine).mean({"n": numbers}, name="mean", bound=200.0)
        Federation(mine).mean({"n": numbers}, weight=3 * session.party.number, name="weighted", bound=200.0)
        Federation(mine).mean({"n": numbers + 1}, name="other", bound=200.0)

    meeting.run(work)
    assert values["sum"] == values["mean"] == values["weighted"] != values["other"]


def test_another_federation_knows_them_again() -> None:
    """By keys that follow from the home alone; a rotated key of the site changes nothing."""
    arrays = model()
    here, there = mark(arrays), mark(arrays, party=OTHER)
    assert here.value == there.value
    assert here.fingerprint != there.fingerprint


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 21), st.sampled_from(["bit", "name", "shape", "kind", "order"]), st.booleans())
def test_everything_else_counts(at: int, how: str, wide: bool) -> None:
    arrays = model()
    changed = {n: a.copy() for n, a in arrays.items()}
    if how == "bit":
        flat = np.concatenate([a.reshape(-1) for a in changed.values()])
        flat[at] = np.nextafter(flat[at], np.float32(9))
        changed = {"a": flat[:15].reshape(5, 3), "b": flat[15:]}
    elif how == "name":
        changed = {"a": changed["a"], "c": changed["b"]}
    elif how == "shape":
        changed["a"] = changed["a"].reshape(3, 5)
    elif how == "kind":
        changed["b"] = changed["b"].astype(np.float64)
    else:
        changed = dict(reversed(changed.items()))
    assert mark(arrays).value != mark(changed, wide=wide).value


def test_zeros_are_told_from_numbers() -> None:
    zeros = {n: np.zeros_like(a) for n, a in model().items()}
    for wide in (False, True):
        assert mark(zeros, wide=wide).value == ZERO_VALUE
        assert mark(zeros | {"b": -zeros["b"]}, wide=wide).value == ZERO_VALUE
        last = zeros["b"].copy()
        last[-1] = 1e-30
        assert mark(zeros | {"b": last}, wide=wide).value not in (ZERO_VALUE, UNKNOWN)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_share_the_work_of_wide_lanes(ranks: int) -> None:
    rows = FINGERPRINT_BLOCK_BYTES // 4 + 1000
    arrays = {"a": RNG.normal(size=rows).astype(np.float32), "b": RNG.normal(size=(3, rows)).astype(np.float32)}
    layout = Layout([Tensor(n, "float64", a.shape) for n, a in arrays.items()], salted=True)
    vector = Vector(layout)
    vector.sources = dict.fromkeys(arrays, "float32")
    vector.fill(arrays)
    keys = ledger_keys(bytes(32), bytes(32), 1)
    whole = source_tags(vector, keys, SerialGroup())
    assert b"".join(run_ranks(ranks, lambda group: source_tags(vector, keys, group))) == whole

    def of_part(group: Group) -> bytes:
        """Where each rank holds its part of the wide vector only."""
        held = parts(layout.nbytes, ranks)
        mine = Vector(layout, held[group.rank])
        mine.sources = vector.sources
        mine.buffer[:] = vector.buffer[slice(*held[group.rank])]
        return source_tags(mine, keys, group, held)

    assert b"".join(run_ranks(ranks, of_part)) == whole
    assert mark(arrays).value == mark(arrays, wide=True).value


def test_nothing_is_known_where_nothing_is_hidden() -> None:
    """Mode `off` keeps the rules of one federation and no others."""
    found = mark(model(), party=party_of(agreement_of(3, secure={"mode": "off"}), 1))
    assert (found.category, found.value) == ("", UNKNOWN)
    assert len(found.fingerprint) == 32
