"""Which bases a site accepts of the others: its own chain, and states that τ sites signed in the last rounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from protocol_fakes import World
from secure_fakes import key_of

from fedhpc.errors import PolicyError
from fedhpc.federation.party import NO_BASE, SumKind, SumPlan
from fedhpc.secure.messages import Result
from fedhpc.secure.transcript import canon, sign_message
from fedhpc.sums.over_relay.acceptable_bases import KnownStates
from fedhpc.wire.object_names import ObjectName

WORLD = World(4)  # τ = 3
CONFIG = key_of("config").hex()


def state(round_: int) -> bytes:
    return key_of("state", round_)


class Relay:
    """What it keeps of rounds, and what was looked at."""

    def __init__(self) -> None:
        self.objects: dict[ObjectName, bytes] = {}
        self.asked: list[int] = []

    def name(self, round_: int, attempt: int, name: str) -> ObjectName:
        return ObjectName(CONFIG, round_, attempt, name)

    @property
    def client(self) -> Relay:
        return self

    def get(self, name: ObjectName) -> bytes | None:
        if name.name == "DONE":
            self.asked.append(name.round)
        return self.objects.get(name)

    def end(self, round_: int, signers: tuple[int, ...] = (1, 2, 3), key: int = 0, u3: tuple[int, ...] = ()) -> None:
        """Round `round_` ended in its second attempt, and these sites signed its state (or `key` signed for them)."""
        body = Result(state(round_), key_of("sum"), u3 or (1, 2, 3)).as_json()
        self.objects[self.name(round_, 0, "DONE")] = canon({"attempt": 2, "u3": [1, 2, 3]})
        for u in signers:
            message = sign_message(WORLD.identities[key or u], "M6", u, key_of("T3"), body)
            self.objects[self.name(round_, 2, f"M6/{u}")] = message


def known(relay: Relay, staleness: int = 2, bound: float | None = 8.0, weights: str = "uniform") -> KnownStates:
    agreement = SimpleNamespace(
        cohort=SimpleNamespace(staleness=staleness),
        secure=SimpleNamespace(bound=bound),
        strategy=SimpleNamespace(weights=weights),
    )
    party: Any = SimpleNamespace(agreement=agreement, members=WORLD.roster)
    return KnownStates(party, relay, WORLD.thresholds)  # type: ignore[arg-type]


def plan(round_: int, base: bytes | None = None) -> SumPlan:
    present = state(round_ - 1)
    return SumPlan(round_, "train", SumKind.TRAINING, present, present if base is None else base)


STATISTIC = SumPlan(8, "mean age", SumKind.STATISTIC, state(7))


def test_without_staleness_only_the_present_model_counts() -> None:
    relay = Relay()
    states = known(relay, staleness=0)
    for round_ in range(1, 9):
        states.reached(round_, state(round_))
        relay.end(round_)
    assert states.bases(plan(9)) == {state(8)}
    assert states.look_up(plan(9), frozenset({state(7)})) == frozenset()
    assert relay.asked == []


@pytest.mark.parametrize(
    ("bound", "weights", "oldest"),
    [(8.0, "uniform", 7), (None, "uniform", 4), (8.0, "samples", 6), (None, "samples", 3)],
)
def test_its_own_chain_reaches_as_far_as_staleness(bound: float | None, weights: str, oldest: int) -> None:
    """Two training rounds back, each with what was measured, and maybe with its scale; W was summed once besides."""
    states = known(Relay(), 2, bound, weights)
    for round_ in range(1, 13):
        states.reached(round_, state(round_))
    assert states.bases(plan(13)) == {state(r) for r in range(oldest, 13)}


def test_an_own_older_base_is_named_besides() -> None:
    states = known(Relay())
    states.reached(7, state(7))
    assert states.bases(plan(8, base=key_of("older"))) == {state(7), key_of("older")}


def test_sums_without_a_base_know_no_other() -> None:
    relay = Relay()
    relay.end(7)
    states = known(relay)
    states.reached(7, state(7))
    assert states.bases(STATISTIC) == {NO_BASE}
    assert states.look_up(STATISTIC, frozenset({state(7)})) == frozenset()


def test_a_state_that_enough_sites_signed_is_found_and_no_older_one() -> None:
    relay = Relay()
    for round_ in range(1, 13):
        relay.end(round_)
    states = known(relay)  # of a site that reached none of them itself
    assert states.look_up(plan(13), frozenset({state(11)})) == {state(11)}
    assert relay.asked == [12, 11], "no longer than needed"
    assert states.look_up(plan(13), frozenset({state(7), key_of("never")})) == {state(7)}
    assert states.look_up(plan(13), frozenset({state(6)})) == frozenset()
    assert min(relay.asked) == 7, "rounds that no update may begin from are not looked at"


@pytest.mark.parametrize(("without", "holders", "found"), [((1, 2, 3), (), 1), ((2, 4), (1,), 1), ((2,), (1,), 0)])
def test_a_state_is_known_of_a_round_whose_sum_some_sites_did_without(
    without: tuple[int, ...], holders: tuple[int, ...], found: int
) -> None:
    """M6 of those that hold the sum and ABANDON of the others count together, and two of them are too few."""
    relay = Relay()
    relay.end(7, holders)
    relay.objects[relay.name(7, 0, "DONE")] = canon({"attempt": 2, "u3": []})
    for u in without:
        message = sign_message(WORLD.identities[u], "ABANDON", u, key_of("before"), {"state": state(7).hex()})
        relay.objects[relay.name(7, 0, f"ABANDON/{u}")] = message
    assert known(relay).look_up(plan(8), frozenset({state(7)})) == ({state(7)} if found else frozenset())


def test_a_state_that_too_few_or_others_signed_is_none() -> None:
    wanted = frozenset({state(7)})
    for lie in ({"signers": (1, 2)}, {"key": 4}, {"u3": (1, 2)}):
        relay = Relay()
        relay.end(7, **lie)  # type: ignore[arg-type]
        assert known(relay).look_up(plan(8), wanted) == frozenset(), lie


@pytest.mark.parametrize(
    "done", [b"{}", b"rubbish", canon({"attempt": 2, "u3": 7}), canon({"attempt": "x", "u3": [1]})]
)
def test_what_the_relay_says_wrongly_of_one_round_spoils_no_other(done: bytes) -> None:
    relay = Relay()
    relay.end(6)
    relay.end(7)
    relay.objects[relay.name(7, 0, "DONE")] = done
    assert known(relay).look_up(plan(8), frozenset({state(6), state(7)})) == {state(6)}


def test_a_relay_that_refuses_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay()

    def refuse(name: ObjectName) -> bytes | None:
        raise PolicyError("the relay refused (403 forbidden)")

    monkeypatch.setattr(relay, "get", refuse)
    assert known(relay).look_up(plan(8), frozenset({state(7)})) == frozenset()
