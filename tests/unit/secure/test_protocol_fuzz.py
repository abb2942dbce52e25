"""Whatever a peer or the relay sends: a PolicyError or the message as it was meant; no other error, no memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protocol_fakes import FakeRelay, Memory, Site, World
from secure_fakes import key_of

from fedhpc.errors import FedhpcError, PolicyError
from fedhpc.secure import messages
from fedhpc.secure.attempt_file import from_private
from fedhpc.secure.results import RoundResults
from fedhpc.secure.transcript import canon, parse_canon

WORLD = World(4)
ATTEMPT = WORLD.attempt()
ATTEMPT.run()
KINDS = ("M1", "M2", "M3", "M4", "M5", "M6")
GENUINE: dict[str, bytes] = {name: ATTEMPT.objects.small[f"{name}/2"] for name in KINDS}
GENUINE |= {"M0": ATTEMPT.objects.small["M0"], "M4r": ATTEMPT.objects.small["M4r"]}


def read_message(data: bytes, name: str) -> Any:
    """A signed message as site 1 reads it, with the transcript that it names itself."""
    t = bytes.fromhex(parse_canon(GENUINE[name])["t"])
    body = messages.open_signed(data, name, t, WORLD.roster[1], 4)
    return {
        "M1": lambda: messages.read_keys(body, "b"),
        "M2": lambda: messages.read_shares(body, 1, 4, "b"),
        "M3": lambda: messages.read_masked(body, "b"),
        "M4": lambda: messages.read_empty(body, "M4", "b"),
        "M5": lambda: messages.read_unmask(body, 1, 4, 4, "b"),
        "M6": lambda: messages.read_result(body, 4, "b"),
    }[name]()


def relay_put(data: bytes, name: str) -> None:
    machine = FakeRelay(ATTEMPT.objects, 4, 3)
    machine.put(name, 2, data)


PARSERS: dict[str, Callable[[bytes], Any]] = {
    "M0": lambda data: messages.read_proposal(data, 4),
    "M4r": lambda data: messages.read_survivors(data, 4),
    "file": from_private,
    "results": lambda data: RoundResults(WORLD.roster, WORLD.thresholds, WORLD.state).receive(data),
    **{name: (lambda data, name=name: read_message(data, name)) for name in KINDS},  # type: ignore[misc]
    **{f"relay {name}": (lambda data, name=name: relay_put(data, name)) for name in KINDS},  # type: ignore[misc]
}
SEEDS = GENUINE | {"file": WORLD.disks[1].private or b"", "results": GENUINE["M6"]}
SEEDS |= {f"relay {name}": GENUINE[name] for name in KINDS}

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=80)
    | st.sampled_from(["00" * 32, "ab" * 24, ""])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
)


@st.composite
def mutated(draw: st.DrawFn, seed: bytes) -> bytes:
    """Random bytes, or a genuine message with bytes or JSON values changed."""
    kind = draw(st.sampled_from(["random", "bytes", "value", "value", "value"]))
    if kind == "random":
        return draw(st.binary(max_size=300))
    if kind == "bytes":
        at, n = draw(st.integers(0, len(seed))), draw(st.integers(0, 4))
        return seed[:at] + draw(st.binary(max_size=8)) + seed[at + n :]
    value = json.loads(seed)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    node, key = places[draw(st.integers(0, len(places) - 1))]
    change = draw(st.sampled_from(["replace", "remove", "add", "twist"]))
    if change == "remove":
        del node[key]
    elif change == "add" and isinstance(node, dict):
        node[draw(st.text(max_size=6))] = draw(values)
    elif change == "twist" and isinstance(node[key], str):
        node[key] = draw(st.sampled_from([node[key].upper(), node[key] + "0", node[key][2:], node[key][::-1]]))
    else:
        node[key] = draw(values)
    try:
        return canon(value)
    except ValueError:
        return json.dumps(value).encode()


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_parsers_refuse_with_a_policy_error_or_take_the_genuine(name: str, data: st.DataObject) -> None:
    candidate = data.draw(mutated(SEEDS[name]))
    try:
        PARSERS[name](candidate)
    except FedhpcError:
        return
    if name in KINDS or name.startswith("relay"):
        assert candidate == SEEDS[name]  # a signature, or what was stored once, lets nothing else through
    else:
        parse_canon(candidate)


@pytest.mark.parametrize("name", PARSERS)
def test_no_memory_before_the_length_is_checked(name: str) -> None:
    """Longer than any message of the kind, nested, or numbers of a million digits: refused in a few megabytes."""
    long = b'{"a":"' + b"0" * (6 << 20) + b'"}'
    nested = b"[" * (1 << 19) + b"]" * (1 << 19)
    digits = b'{"attempt":' + b"9" * 500_000 + b"}"
    many = b"[" + b"1," * 300_000 + b"1]"
    for bad in (long, nested, digits, many):
        tracemalloc.start()
        with pytest.raises(PolicyError):
            PARSERS[name](bad)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 * len(bad) + (1 << 20) if len(bad) < 4 << 20 else peak < 1 << 20
        if name not in ("M0", "file"):
            assert peak < 1 << 20


def test_a_proposal_of_impossible_vectors_costs_nothing() -> None:
    relay = FakeRelay(Memory(), 4, 3, max_vector_bytes=1 << 30)
    tracemalloc.start()
    with pytest.raises(PolicyError, match="at most"):
        relay.propose(WORLD.proposal(1, [1, 2, 3], tensors=((64, (1 << 53) - 1),) * 3))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_machine_that_refused_goes_on_with_the_truth(data: st.DataObject) -> None:
    """Every input of a site is first mutated; after the refusals the attempt still gives the exact sum."""
    world = World(4)
    attempt = world.attempt()
    attempt.hostile = True

    def lie(name: str, u: int, truth: Any) -> Any:
        if name == "Y" or u != 1:
            return truth
        site = attempt.live[1]
        if isinstance(truth, dict):
            victim = data.draw(st.sampled_from(sorted(truth)))
            told: Any = truth | {victim: data.draw(mutated(truth[victim]))}
        else:
            told = data.draw(mutated(truth))
        # Another Tree(Y) is well formed, and the site would sign it as its one T3: test_13 of the attacks.
        if name != "M4r" or not well_formed(told):
            attack(site, name, told)
        return truth

    def well_formed(told: bytes) -> bool:
        try:
            return messages.read_survivors(told, 4).u3 == attempt.relay.u3
        except PolicyError:
            return False

    def attack(site: Site, name: str, told: Any) -> None:
        machine, relay = site.machine, attempt.relay
        calls: dict[str, Callable[[], Any]] = {
            "M0": lambda: machine.receive_proposal(told, world.expected()),
            "M1": lambda: machine.receive_keys(told),
            "M2": lambda: machine.receive_shares(told),
            "M4r": lambda: machine.receive_survivors(told, relay.messages("M3")),
            "M3": lambda: machine.receive_survivors(relay.m4r or b"", told),
            "M4": lambda: machine.receive_signatures(told),
            "M5": lambda: machine.receive_answers(told),
        }
        try:
            calls[name]()
        except FedhpcError:
            return
        # Tolerated: M4 and M5 of which one is bad, or M0 whose attempt number was changed.
        assert name in ("M4", "M5") or name == "M0" or told == relay.messages(name)

    attempt.lies = lie
    m0 = attempt.m0
    attempt.run(stop="M2")
    if parse_canon(world.disks[1].private or b"")["m0"] != m0.hex():
        return  # it took the changed attempt number for this attempt: the genuine one was refused
    assert set(attempt.go_on("M2").values()) == {world.sum_over(world.numbers)}


def test_the_seeds_are_genuine() -> None:
    for name, seed in SEEDS.items():
        PARSERS[name](seed)
    assert key_of("x") != key_of("y")
