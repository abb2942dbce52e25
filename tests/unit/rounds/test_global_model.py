"""One round of the global model by hand: shares, lost sites, older updates, as docs/protocol.md section 3 has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting
from numpy.typing import NDArray

from fedhpc.app.federation import Federation
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.session import Session
from fedhpc.rounds.global_model import Base, GlobalModel

SAMPLES = (10, 30, 20, 60)
BOUND = 64.0
# BOUND < 2^7, and 2^28 ≤ ⌊(2^31 − 1)/4⌋ < 2^29, 2^60 ≤ ⌊(2^63 − 1)/4⌋ < 2^61: the largest scales that cannot wrap.
SCALES = {32: 21, 64: 53}
UPDATES = {1: [12.0, -24.0, 0.1], 2: [24.0, 4.0, 8.3], 3: [36.0, 11.0, -5.7], 4: [-20.0, 2.0, 44.9]}
Array = NDArray[Any]


def model(session: Session) -> GlobalModel:
    return GlobalModel(session, {"w": np.zeros(3, np.float32)})


def exchange(model_: GlobalModel, update: list[float], number: int, base: Base | None = None) -> bool:
    """`number`'s round from `base`, whose local model is base − update; whether all sites were in it."""
    base = base or model_.base()
    local = {"w": base.tensors["w"] - np.array(update, np.float32)}
    return model_.exchange(local, SAMPLES[number - 1], base)


def by_hand(
    shares: Mapping[int, float],
    again: float,
    lane_bits: int = 32,
    bases: Mapping[int, Array] | None = None,
) -> Array:
    """Σ rint(x·(w/W)·2^s)·2^−s, rounded to its kind, times `again` in float64, rounded once more: the mean update."""
    bases = bases or dict.fromkeys(shares, np.zeros(3, np.float32))
    total = np.zeros(3, np.int64)
    for u, share in shares.items():
        kind = np.float32 if lane_bits == 32 else np.float64
        x = np.subtract(bases[u], bases[u] - np.array(UPDATES[u], np.float32), dtype=kind)
        total += np.rint(x.astype(np.float64) * (share * 2.0 ** SCALES[lane_bits])).astype(np.int64)
    mean = (total.astype(np.float64) * 2.0 ** -SCALES[lane_bits]).astype(np.float32)
    return mean if again == 1 else (mean.astype(np.float64) * again).astype(np.float32)


def after_one_round(weights: str, lost: set[int], lane_bits: int) -> dict[int, Array]:
    """What every site of the round then holds; the model was zero."""
    secure = {"bound": BOUND, "lane_bits": lane_bits}
    meeting = Meeting(4, SAMPLES, strategy={"weights": weights}, secure=secure)
    meeting.lost[2 if weights == "samples" else 1] = lost  # with private weights the sum of W comes first

    def work(session: Session) -> Array | None:
        mine, number = model(session), session.party.number
        try:
            whole = exchange(mine, UPDATES[number], number)
        except RoundOverError:
            assert mine.tensors["w"].tolist() == [0.0] * 3
            return None
        assert whole == (not lost)
        return mine.tensors["w"]

    found = {u: tensor for u, tensor in meeting.run(work).items() if tensor is not None}
    assert set(found) == {1, 2, 3, 4} - lost
    assert [plan.everyone for plan in meeting.plans] == ([True, False] if weights == "samples" else [False])
    return found


@pytest.mark.parametrize("lane_bits", [32, 64])
@pytest.mark.parametrize(
    ("weights", "lost", "again"),
    [
        ("uniform", set(), 1.0),
        ("uniform", {4}, 4 / 3),  # the mean is exact over the survivors
        ("uniform", {1}, 4 / 3),
        ("declared", set(), 1.0),
        ("declared", {4}, 120 / 60),
        ("declared", {3}, 120 / 100),
        ("samples", set(), 1.0),
        ("samples", {4}, 1.0),  # W stays the sum over all: a lost site counts as zero
        ("samples", {1}, 1.0),
    ],
)
def test_losing_a_site_of_unequal_weight(weights: str, lost: set[int], again: float, lane_bits: int) -> None:
    of = dict(enumerate(SAMPLES if weights != "uniform" else (1, 1, 1, 1), start=1))
    whole = sum(of.values())
    there = {u: w for u, w in of.items() if u not in lost}
    expected = np.zeros(3, np.float32) - by_hand({u: w / whole for u, w in there.items()}, again, lane_bits)
    for tensor in after_one_round(weights, lost, lane_bits).values():
        assert tensor.tobytes() == expected.tobytes()
    over = whole if weights == "samples" else sum(there.values())
    mean = [-sum(w * UPDATES[u][i] for u, w in there.items()) / over for i in range(3)]
    assert np.abs(expected - mean).max() < 2.0**-18  # what the formula is meant to be


def test_the_mean_of_a_statistic_is_over_who_is_in_it() -> None:
    meeting = Meeting(4)
    meeting.lost[2] = {3}

    def work(session: Session) -> tuple[float, float, list[str]] | None:
        number = session.party.number
        assert Federation(session).mean(np.array([number]), bound=8.0)[0] == 2.5
        try:
            mean = Federation(session).mean({"x": np.array([float(number)])}, bound=8.0, name="mean of x")
            total = Federation(session).sum({"x": np.array([float(number)])}, bound=8.0)
        except RoundOverError:
            session.round_ = 2
            total = Federation(session).sum({"x": np.array([float(number)])}, bound=8.0)
            return None
        return float(mean["x"][0]), float(total["x"][0]), mean.sites

    found = {u: got for u, got in meeting.run(work).items() if got is not None}
    assert set(found) == {1, 2, 4}
    for mean, total, sites in found.values():
        assert abs(mean - 7 / 3) < 1e-12
        assert total == 10.0
        assert sites == ["s1", "s2", "s4"]


COHORT = {"policy": "buffered", "staleness": 2, "discount": 0.5}


@pytest.mark.parametrize(("behind", "discount"), [(1, 2.0**-0.5), (2, 3.0**-0.5)])
def test_an_older_update_is_discounted_and_applied_to_the_present_model(behind: int, discount: float) -> None:
    """Site 4 misses `behind` rounds; then x ← x − (Δ₁ + Δ₂ + Δ₃ + (1 + s)^−½·Δ₄) / 4 with its first update."""
    meeting = Meeting(4, strategy={"weights": "uniform"}, secure={"bound": BOUND}, cohort=COHORT)
    handed: dict[int, Array] = {}
    bases: dict[int, dict[int, Array]] = {}
    for round_ in range(1, behind + 1):
        meeting.lost[round_] = {4}

    def work(session: Session) -> tuple[Array, bytes]:
        mine, number = model(session), session.party.number
        base = first = mine.base()
        for round_ in range(1, behind + 2):
            base = first if number == 4 else mine.base()
            bases.setdefault(round_, {})[number] = base.tensors["w"]
            try:
                exchange(mine, UPDATES[number], number, base)
            except RoundOverError:
                meeting.barrier.wait()
                mine.take_over(lambda into, data=handed[round_]: into.mine.write(0, data.size, data))
                session.round_ = mine.reached = round_
            else:
                if number == 1:
                    handed[round_] = np.concatenate([a.reshape(-1).view(np.uint8) for a in mine.arrays()])
                if round_ <= behind:
                    meeting.barrier.wait()
            assert mine.rounds == round_
        assert first.tensors["w"].tolist() == [0.0] * 3  # what it began from was not changed under it
        return mine.tensors["w"], mine.state

    found = meeting.run(work)
    present = np.zeros(3, np.float32)
    for round_ in range(1, behind + 1):
        present = present - by_hand(dict.fromkeys((1, 2, 3), 0.25), 4 / 3, bases=bases[round_])
    shares = {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25 * discount}
    expected = present - by_hand(shares, 1.0, bases=bases[behind + 1])
    assert expected.tobytes() != (present - by_hand(dict.fromkeys(shares, 0.25), 1.0, bases=bases[1])).tobytes()
    for tensor, _ in found.values():
        assert tensor.tobytes() == expected.tobytes()
    assert len({state for _, state in found.values()}) == 1


def test_an_update_that_is_too_old_is_refused_before_anything_is_summed() -> None:
    meeting = Meeting(4, strategy={"weights": "uniform"}, secure={"bound": BOUND}, cohort=COHORT)

    def work(session: Session) -> None:
        mine = model(session)
        for rounds in (-3, 1):  # three rounds behind, and from a model that does not exist yet
            with pytest.raises(PolicyError, match="rounds behind the present model"):
                exchange(mine, UPDATES[1], 1, Base(mine.tensors, bytes(32), rounds))

    meeting.run(work)
    assert meeting.plans == []


def test_nothing_is_trained_or_summed_once_the_federation_is_closed() -> None:
    meeting = Meeting(4, strategy={"weights": "uniform"}, secure={"bound": BOUND}, cohort=COHORT)

    def work(session: Session) -> None:
        mine = model(session)
        session.close()
        with pytest.raises(ConfigError, match="the federation is closed"):
            exchange(mine, UPDATES[1], 1)
        with pytest.raises(ConfigError, match="the federation is closed"):
            Federation(session).sum(np.ones(2), bound=8.0)

    meeting.run(work)
    assert meeting.plans == []


def test_all_sites_or_none_choose_the_scale_of_a_sum_that_needs_everyone() -> None:
    """A scale over fewer sites would let a round end without a site that the sum itself then waits for."""
    meeting = Meeting(4)
    sums: list[Callable[[Session, Array], Any]] = [
        lambda session, x: Federation(session).sum({"x": x}, everyone=True, name="all"),
        lambda session, x: Federation(session).sum({"x": x}, name="any"),
        lambda session, x: Federation(session).mean({"x": x}, weight=2.0, name="weighted"),
    ]
    for ask in sums:
        meeting.run(lambda session, ask=ask: ask(session, np.array([0.5])))  # type: ignore[misc]
    asked = {plan.purpose: plan.everyone for plan in meeting.plans}
    assert asked == {
        "scale of all": True,
        "all": True,
        "scale of any": False,
        "any": False,
        "weights of weighted": True,
        "scale of weighted": True,
        "weighted": True,
    }
