"""Salt and blind: the same whenever a round is repeated, unknown without a site's key, and no part of a fingerprint."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting, agreement_of, party_of
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_fakes import LAYOUT, Crash, World
from secure_fakes import key_of

from fedhpc.app.federation import Federation
from fedhpc.errors import InternalError, PolicyError
from fedhpc.federation.input_check import inspect, share
from fedhpc.federation.party import NO_BASE, Party, SumKind, SumPlan
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector, parts
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.secure.ledger import Mark
from fedhpc.secure.results import RoundResults
from fedhpc.secure.ring import Layout, Tensor, lane_bound
from fedhpc.secure.salt import NO_BLIND, SALT_BYTES, blind_after, layout_key, salt_key, salt_words
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, parse_canon, state_hash

KEY = key_of("salt")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100), st.integers(0, 2**53), st.sampled_from(["train", "weights", "mean age"]), st.integers(0, 9))
def test_words_follow_from_key_and_sum_alone(number: int, round_: int, purpose: str, base: int) -> None:
    words = salt_words(KEY, number, round_, purpose, key_of(base))
    assert (words == salt_words(KEY, number, round_, purpose, key_of(base))).all()
    assert words.dtype == np.int64
    assert 0 <= words.min() <= words.max() < 1 << 56
    assert 100 * int(words.max()) <= 100 * lane_bound(64, 100)  # a hundred of them do not wrap
    others = [
        salt_words(key_of("other"), number, round_, purpose, key_of(base)),
        salt_words(KEY, number % 100 + 1, round_, purpose, key_of(base)),
        salt_words(KEY, number, round_ + 1, purpose, key_of(base)),
        salt_words(KEY, number, round_, purpose + "!", key_of(base)),
        salt_words(KEY, number, round_, purpose, key_of(base + 1)),
    ]
    assert not any((words == other).any() for other in others)


def test_all_bits_of_a_word_are_used() -> None:
    seen = 0
    for round_ in range(40):
        for word in salt_words(KEY, 1, round_, "train", NO_BASE):
            seen |= int(word)
    assert seen == (1 << 56) - 1


def test_keys_belong_to_one_site_of_one_configuration() -> None:
    keys = [salt_key(c, i, u) for c in (key_of("a"), key_of("b")) for i in (key_of("c"), key_of("d")) for u in (1, 2)]
    assert len(set(keys)) == 8
    assert layout_key(key_of("a"), 1, b"") == b""
    made = [
        layout_key(c, r, s) for c in (key_of("a"), key_of("b")) for r in (1, 2) for s in (bytes(40), bytes([1] * 40))
    ]
    assert len(set(made)) == 8
    assert all(len(key) == 32 for key in made)
    assert blind_after(KEY, b"") == KEY


# --- in a vector


def salted(nbytes: int) -> Layout:
    return Layout([Tensor("x", "float32", (nbytes // 4,), 20)], salted=True)


@pytest.mark.parametrize("tensors", [[], [Tensor("salt", "float32", (3,), 9)], [Tensor("none", "int64", (0,))]])
def test_the_salt_is_last_and_has_no_name(tensors: list[Tensor]) -> None:
    """Also where there is nothing else, and where a user's own array is called salt."""
    vector = Vector(Layout(tensors, salted=True))
    layout = vector.layout
    assert layout.named == tuple(tensors)
    assert layout.payload_bytes == sum(t.lanes * t.lane_bytes for t in tensors)
    assert layout.nbytes == -(-layout.payload_bytes // 16) * 16 + SALT_BYTES
    assert layout.as_json()[-1] == {"bits": 64, "name": "salt", "scale": 0, "shape": [5]}
    vector.salt[:] = [1, 2, 3, 4, 5]
    assert vector.buffer[-SALT_BYTES:].view("<i8").tolist() == [1, 2, 3, 4, 5]
    assert list(vector.views()) == [t.name for t in tensors]
    assert not any(view.any() for view in vector.views().values())
    assert Vector(Layout(tensors)).salt.size == 0


@pytest.mark.parametrize("nbytes", [0, 4, 1000, TREE_BLOCK_BYTES - 40, TREE_BLOCK_BYTES - 16, TREE_BLOCK_BYTES])
@pytest.mark.parametrize("rails", [1, 2, 3])
def test_a_fingerprint_covers_all_but_the_salt(nbytes: int, rails: int) -> None:
    """Whatever part has the salt, alone or beside numbers: another round's salt changes nothing, a number does."""
    party, layout = party_of(agreement_of(3), 1), salted(nbytes)
    assert sum(stop - start for start, stop in parts(layout.nbytes, rails)) == layout.nbytes

    def mark(round_: int, change: int | None = None, *, partial: bool = False) -> list[Mark]:
        vector = Vector(layout)
        vector.view("x")[...] = 0.25
        if change is not None:
            vector.view("x")[change] = 0.5
        plan = SumPlan(round_, "train", SumKind.TRAINING, bytes(32))
        share(party, vector, plan)
        assert vector.salt.all()
        found = []
        for part in parts(layout.nbytes, rails):
            mine = Vector(layout, part) if partial else vector
            if partial:  # a rank that holds its own part only
                mine.buffer[:] = vector.buffer[part[0] : part[1]]
                for piece in layout.pieces(*part):
                    if piece.tensor is layout.tensors[-1]:
                        mine.of(piece)[:] = 0
                share(party, mine, plan)
                assert mine.buffer.tobytes() == vector.buffer[part[0] : part[1]].tobytes()
            found.append(inspect(party, mine, plan, [part]))
        return found

    assert mark(1) == mark(2) == mark(1, partial=True)
    if nbytes:
        assert mark(1) != mark(1, nbytes // 4 - 1)


def test_vectors_that_are_not_summed() -> None:
    party = party_of(agreement_of(3), 1)
    plan = SumPlan(1, "train", SumKind.TRAINING, bytes(32))
    with pytest.raises(InternalError, match="without salt"):
        share(party, Vector(Layout([Tensor("x", "float32", (3,))])), plan)
    with pytest.raises(InternalError, match="without salt"):
        share(dataclasses.replace(party, salt_key=None), Vector(salted(12)), plan)
    for tensor, what in (
        (Tensor("x", "float32", (3,), bits=8), "tensor 'x' has lanes of 8 bits"),
        (Tensor("x", "float32", (3,), bits=16), "tensor 'x' has lanes of 16 bits"),
        (Tensor("x", "float32", (3,), bits=64), "tensor 'x' is float32 in 64-bit lanes"),
        (Tensor("x", "float64", (3,), bits=32), "tensor 'x' is float64 in 32-bit lanes"),
    ):
        with pytest.raises(PolicyError, match=what) as refused:
            share(party, Vector(Layout([tensor], salted=True)), plan)
        assert "not built" in refused.value.hint
    alone = party_of(agreement_of(1), 1)
    share(alone, Vector(Layout([Tensor("x", "float32", (3,))])), plan)


def test_nothing_of_salt_or_blind_is_in_a_repr() -> None:
    party: Party = party_of(agreement_of(3), 1)
    plan = SumPlan(1, "train", SumKind.TRAINING, bytes(32), layout_key=KEY)
    assert party.salt_key is not None
    for shown in (repr(party), repr(plan), repr(LAYOUT)):
        assert party.salt_key.hex() not in shown
        assert repr(party.salt_key) not in shown
        assert repr(KEY) not in shown


# --- two attempts


def salted_world(sites: int, degree: int) -> World:
    world = World(sites, degree, layout=Layout(LAYOUT.named, salted=True))
    for u in world.numbers:
        words = salt_words(salt_key(key_of("config"), key_of("identity", u), u), u, world.round_, "train", world.state)
        world.plain[u][-SALT_BYTES:] = words.view(np.uint8)
    return world


@pytest.mark.parametrize(("sites", "degree", "lost"), [(3, 0, 0), (4, 0, 0), (4, 0, 1), (10, 8, 3)])
def test_two_attempts_over_one_set_have_one_result(sites: int, degree: int, lost: int) -> None:
    """Fewer than τ results in each attempt, τ together. A key from the attempt would make them two bodies for ever."""
    world = salted_world(sites, degree)
    gone = set(world.numbers[1 : 1 + lost])

    def play(result_of: int) -> dict[int, bytes]:
        attempt = world.attempt()

        def leave(step: str, when: str, u: int) -> None:
            if when == "before" and ((step == "M3" and u in gone) or (step == "M6" and u not in said[:result_of])):
                raise Crash

        attempt.hook = leave
        said = [u for u in world.numbers if u not in gone and u not in first]
        opened = attempt.run()
        assert set(opened.values()) == {world.sum_over(sorted(set(world.numbers) - gone))}
        return {u: m for u, m in attempt.relay.messages("M6").items() if u in said[:result_of]}

    first: dict[int, bytes] = {}
    first = play(1)
    second = play(world.tau - 1)
    assert len(first) == 1
    assert len(second) == world.tau - 1
    bodies = [parse_canon(m)["body"] for m in (*first.values(), *second.values())]
    assert bodies == [bodies[0]] * world.tau
    transcripts = {parse_canon(m)["t"] for m in (*first.values(), *second.values())}
    assert len(transcripts) == 2
    results = RoundResults(world.roster, world.thresholds, world.state)
    for message in (*first.values(), *second.values()):
        assert results.settled() is None
        results.receive(message)
    settled = results.settled()
    assert settled is not None
    assert settled.state == world.next_state(world.sum_over(settled.u3))


# --- states and layouts of a federation


def trained(session: Session, before: Any = None) -> tuple[GlobalModel, list[bytes]]:
    """A model of one number after two rounds, and its states."""
    if before is not None:
        before(session)
    model = GlobalModel(session, {"x": np.zeros(1, np.float32)})
    states = [session.state]
    for _ in range(2):
        model.exchange({"x": np.full(1, 0.5, np.float32)}, 10 * session.party.number, {})
        states.append(model.state)
    return model, states


def guesses(model: GlobalModel, config: bytes, round_: int, blind: bytes) -> set[bytes]:
    """Hashes of states whose model the guesser knows already, with a blind or none."""
    total = np.array([60.0]).tobytes()
    found = set()
    for value in (0.0, 0.5, float(model.tensors["x"][0])):
        for weight in (bytes(8), total):
            for rounds in range(4):
                tensors = np.float32(value).tobytes() + weight + rounds.to_bytes(8, "little")
                found |= {state_hash(config, round_, SHA256.tree(tensors + b)) for b in (b"", blind)}
    return found


@pytest.mark.parametrize("bound", [True, False])
def test_the_state_of_a_small_model_cannot_be_guessed(bound: bool) -> None:
    """The relay sees states in READY and M6. The first, of a public model, may be known; none after it."""
    meeting = Meeting(3, secure={"bound": 8.0} if bound else {})
    found = meeting.run(lambda session: (*trained(session), session.party.agreement.hash))
    model, states, config = found[1]
    assert {tuple(s) for _, s, _ in found.values()} == {tuple(states)}
    assert len({m.blind for m, _, _ in found.values()}) == 1
    assert states[0] in guesses(model, config, 0, NO_BLIND)
    every = set().union(*(guesses(model, config, r, NO_BLIND) for r in range(10)))
    assert not every & set(states[1:])
    assert states[2] in guesses(model, config, model.reached, model.blind)  # or this test would guess wrongly


def test_a_first_model_that_sums_went_into_is_not_public() -> None:
    def statistic(session: Session) -> None:
        Federation(session).sum({"n": np.array(session.party.number)}, name="mean age")

    found = Meeting(3, secure={"bound": 8.0}).run(
        lambda session: (*trained(session, statistic), session.party.agreement.hash)
    )
    model, states, config = found[2]
    assert states[0] not in guesses(model, config, 1, NO_BLIND)
    assert len({s[0] for _, s, _ in found.values()}) == 1


def test_a_statistic_leaves_the_blind_as_it_is() -> None:
    def work(session: Session) -> None:
        model, _ = trained(session)
        blind, tensors = model.blind, session.tensors_tree
        Federation(session).sum({"n": np.array(1)}, name="mean age")
        assert (model.blind, session.tensors_tree) == (blind, tensors)
        assert session.last_salt != b""

    Meeting(3, secure={"bound": 8.0}).run(work)


def test_scales_that_a_sum_fixed_cannot_be_guessed_from_the_layout() -> None:
    """A statistic and an update without bound: no scale gives the layout's hash in M0. With a bound it is public."""
    meeting = Meeting(3)

    def work(session: Session) -> None:
        Federation(session).sum({"x": np.array([3.0 * session.party.number])}, name="mean age")
        Federation(session).sum({"x": np.array([3.0])}, bound=16.0, name="bounded")
        trained(session)

    sent: list[tuple[str, bytes]] = []
    known: set[bytes] = set()  # what a guesser of scales would arrive at

    def note(plan: SumPlan, layout: Layout) -> None:
        known.add(layout.hash)
        sent.append((plan.purpose, layout.hash_under(plan.layout_key)))

    meeting.noted = note
    meeting.run(work)
    public = {purpose for purpose, hash_ in sent if hash_ in known}
    hidden = {purpose for purpose, hash_ in sent if hash_ not in known}
    assert "bounded" in public
    assert hidden == {"mean age", "train"}
    hashes = [hash_ for purpose, hash_ in sent if purpose == "train"]
    assert len(set(hashes)) == len(hashes)  # equal scales of two rounds are not seen to be equal
