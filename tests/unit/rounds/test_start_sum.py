"""The sum `start`: bit for bit what the giver has, at every site; and a blind that only those in it can make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from federation_fakes import FakeSums, Meeting, party_of, session_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedhpc.agreement.federation_file import Agreement, read_agreement
from fedhpc.errors import DataError, PolicyError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.party import SumKind
from fedhpc.federation.ranges import forms_of
from fedhpc.federation.session import Session
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.start_sum import Taken, _lanes, _packed, _unpacked, take_over
from fedhpc.secure import labels
from fedhpc.secure.keys import derive
from fedhpc.secure.salt import NO_BLIND
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import state_hash

PREVIOUS = "ab" * 32


def model(value: float = 1.0) -> Tensors:
    """Small numbers, numbers that are none, a scalar, an empty tensor: all of it is bytes."""
    return {
        "weight": np.array([[value, -0.0, np.inf], [np.nan, 1e-42, 3e38]], np.float32),
        "scalar": np.array(value / 3),
        "empty": np.zeros((0, 2), np.float32),
        "odd": np.arange(5, dtype=np.float32),
    }


def going_on(sites: int, holders: tuple[int, ...], weights: str = "samples") -> Meeting:
    """Sites s1, s2, …, whose epoch goes on from a model that the `holders` have for certain, in this order."""
    meeting = Meeting(sites, strategy={"weights": weights})
    agreement = meeting.agreement
    has = [agreement.roster[u - 1].identity.hex() for u in holders]
    text = agreement.source.decode().replace("rounds = 1", f"rounds = 1\nepoch = 1\nprevious = '{PREVIOUS}'", 1)
    text += f"\n[start]\nfrom = 'previous'\nepochs = ['{PREVIOUS}']\nsites = {has!r}\n"
    meeting.agreement = read_agreement(text.encode(), "federation.toml")
    return meeting


def begin(session: Session, own: Taken | None) -> GlobalModel:
    fresh = {name: np.zeros_like(t) for name, t in model().items()}
    found = GlobalModel(session, fresh, fresh=False)
    take_over(session, found, own)
    return found


def bits(tensors: Tensors) -> dict[str, tuple[Any, bytes]]:
    return {name: (t.shape, t.tobytes()) for name, t in tensors.items()}


def test_a_new_site_learns_the_model_to_the_last_bit() -> None:
    meeting = going_on(4, (3, 2))
    old = Taken(model(), 813.5)
    found = meeting.run(lambda session: (begin(session, old if session.party.number in (2, 3) else None), session))
    for begun, session in found.values():
        assert bits(begun.tensors) == bits(old.tensors)
        assert begun.saved_outer()["total_weight"][0] == 813.5
        assert (begun.rounds, begun.reached, session.round_) == (0, 1, 1)
        assert begun.state == session.state
    (plan,) = meeting.plans
    before = state_hash(meeting.agreement.hash, 0, SHA256.tree(b""))  # the same for all: nothing is known of the model
    assert (plan.base, plan.state) == (before, before)
    assert plan.kind is SumKind.TRAINING
    assert (plan.everyone, plan.skip, plan.checkpointed) == (True, False, True)
    assert (plan.purpose, plan.category) == (labels.PURPOSE_START, labels.CLASS_START)


def test_the_blind_is_made_from_what_only_the_sites_in_the_sum_have() -> None:
    meeting = going_on(3, (1,))
    found = meeting.run(
        lambda session: (begin(session, Taken(model(), None) if session.party.number == 1 else None), session.last_salt)
    )
    ((blind, salt),) = {(begun.blind, salt) for begun, salt in found.values()}
    assert blind == derive(NO_BLIND, salt, labels.KEY_BLIND)
    assert len(salt) == 40
    assert blind != NO_BLIND


def test_without_a_w_it_is_summed_later() -> None:
    meeting = going_on(3, (1, 2, 3), weights="uniform")
    found = meeting.run(lambda session: begin(session, Taken(model(), None)))
    assert all(not begun.saved_outer() for begun in found.values())


@pytest.mark.parametrize("other", ["model", "weight"])
def test_an_old_site_with_another_copy_refuses(other: str) -> None:
    meeting = going_on(3, (1, 2, 3))
    copies = {u: Taken(model(), 813.5) for u in meeting.numbers}
    if other == "weight":
        copies[3] = Taken(model(), 813.25)
    else:
        copies[3].tensors["odd"][4] = np.nextafter(np.float32(4), np.float32(5))
    told: dict[int, Exception | None] = {}

    def site(session: Session) -> None:
        told[session.party.number] = None
        try:
            begin(session, copies[session.party.number])
        except PolicyError as error:
            told[session.party.number] = error
            assert session.round_ == 0

    meeting.run(site)
    assert (told[1], told[2]) == (None, None)
    assert isinstance(told[3], PolicyError)
    assert "run the old epoch to its end" in told[3].hint
    # A giver that is behind, or lies, is refused by all others; they learn which site it is, and how to go on.
    assert told[3].what.endswith("that of site s1")
    assert "fedhpc federation revoke" in told[3].hint


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"odd": np.zeros(6, np.float32)}, r"odd was float32 \[6\], now it is float32 \[5\]"),
        ({"odd": np.zeros(5)}, r"odd was float64 \[5\]"),
        ({"more": np.zeros(1)}, r"more was float64 \[1\], now it is absent"),
    ],
)
def test_another_model_is_no_model_to_go_on_from(change: Tensors, told: str) -> None:
    meeting = going_on(3, (1,))
    with pytest.raises(DataError, match=told):
        meeting.run(
            lambda session: begin(session, Taken(model() | change, None) if session.party.number == 1 else None)
        )


def test_two_givers_are_found_out() -> None:
    """A site whose software puts its model in although it is not the giver: the sum of two is no model."""
    agreements: dict[int, Agreement] = {}
    meeting = going_on(3, (1, 2))
    first = meeting.agreement
    begun = list(first.start.sites)
    lying = first.source.decode().replace(repr(begun), repr(begun[::-1]))
    agreements[2] = read_agreement(lying.encode(), "federation.toml")

    def site(session: Session) -> GlobalModel:
        own = Taken(model(-1.5), None) if session.party.number < 3 else None
        if session.party.number == 2:
            object.__setattr__(session.party.agreement, "start", agreements[2].start)
        return begin(session, own)

    meeting.session = lambda number: session_of(*_own(meeting, number))  # type: ignore[method-assign]
    with pytest.raises((PolicyError, DataError)):
        meeting.run(site)


def _own(meeting: Meeting, number: int) -> tuple[Any, Any]:
    """A party with an agreement of its own, so that one site can be made to lie."""
    party = party_of(read_agreement(meeting.agreement.source, "federation.toml"), number)
    return party, FakeSums(meeting, party)


ARRAYS = st.one_of(
    npst.arrays(np.float32, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7)),
    npst.arrays(np.float64, npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=9)),
)


@given(ARRAYS, st.one_of(st.none(), st.floats(min_value=2.0**-20, max_value=2.0**46)), st.integers(2, 100))
def test_lanes_hold_any_bytes_and_leave_room_for_all_sites(array: Any, weight: float | None, sites: int) -> None:
    taken = Taken({"x": array}, weight)
    packed = _packed(taken)
    assert {name: lanes.size for name, lanes in packed.items()} == _lanes(forms_of(taken.tensors))
    for lanes in packed.values():
        assert lanes.dtype == np.dtype("<i8")
        assert not lanes.size or 0 <= int(lanes.min()) <= int(lanes.max()) < 1 << 56 <= ((1 << 63) - 1) // sites
    raw = array.tobytes()  # as docs/protocol.md says it
    assert packed["model/x"].tolist() == [int.from_bytes(raw[i : i + 7], "little") for i in range(0, len(raw), 7)]
    back = _unpacked(packed["model/x"], array)
    assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, array.tobytes())
    assert (float(_unpacked(packed["total_weight"], np.zeros(1))[0]) or None) == weight
