"""Whole rounds among sites and a relay in memory: X is the plain integer sum over U3, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_fakes import Crash, World

from fedhpc.errors import PolicyError
from fedhpc.federation.vector import Vector
from fedhpc.secure.catch_up_messages import CaughtUp, release
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.results import RoundResults, abandon
from fedhpc.secure.ring import Codec, Layout, Tensor
from fedhpc.secure.transcript import parse_canon, sign_message


@pytest.mark.parametrize(("sites", "degree"), [(2, 0), (3, 0), (4, 0), (5, 0), (7, 0), (7, 6), (9, 8), (13, 10)])
def test_whole_round(sites: int, degree: int) -> None:
    world = World(sites, degree)
    attempt = world.attempt()
    opened = attempt.run()
    assert sorted(opened) == world.numbers
    assert set(opened.values()) == {world.sum_over(world.numbers)}
    bodies = [parse_canon(m)["body"] for m in attempt.relay.messages("M6").values()]
    assert bodies == [bodies[0]] * sites
    assert all(site.machine.faults == [] for site in attempt.live.values())
    # Nothing that the relay holds is a plain vector or the plain sum.
    held = [bytes(b) for b in attempt.objects.large.values()]
    assert len(held) == sites + 1
    assert not set(held) & {world.sum_over([u]) for u in world.numbers} | set(held) & set(opened.values())


@pytest.mark.parametrize(("sites", "degree"), [(4, 0), (5, 0), (7, 0), (7, 6), (10, 8)])
@pytest.mark.parametrize("step", ["M1", "M2", "M3", "M3v", "M4", "M5"])
def test_the_sum_over_whoever_is_left(sites: int, degree: int, step: str) -> None:
    """As many sites as may be lost are lost before a message; the others have the exact sum over U3."""
    world = World(sites, degree)
    attempt = world.attempt()
    gone = set(world.numbers[1 : 1 + world.thresholds.losses])

    def leave(at: str, when: str, u: int) -> None:
        if (at, when) == (step, "before") and u in gone:
            raise Crash

    attempt.hook = leave
    opened = attempt.run()
    late = step in ("M4", "M5")
    assert attempt.relay.u3 == tuple(u for u in world.numbers if late or u not in gone)
    assert set(opened) == set(world.numbers) - gone
    assert set(opened.values()) == {world.sum_over(attempt.relay.u3)}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(3, 8),
    st.lists(st.tuples(st.sampled_from(["float32", "float64", "int64"]), st.integers(0, 40)), max_size=6),
    st.data(),
)
def test_random_layouts_and_losses(sites: int, tensors: list[tuple[str, int]], data: st.DataObject) -> None:
    layout = Layout([Tensor(f"t{i}", kind, (n,), 3 if kind != "int64" else 0) for i, (kind, n) in enumerate(tensors)])
    world = World(sites, layout=layout)
    attempt = world.attempt()
    gone = set(data.draw(st.permutations(world.numbers))[: world.thresholds.losses])
    steps = {u: data.draw(st.sampled_from(["M1", "M2", "M3", "M3v", "M4", "M5", "M6"])) for u in gone}

    def leave(at: str, when: str, u: int) -> None:
        if when == "before" and steps.get(u) == at:
            raise Crash

    attempt.hook = leave
    opened = attempt.run()
    assert len(opened) >= world.tau
    assert set(opened.values()) == {world.sum_over(attempt.relay.u3)}


def test_weights_and_values_through_the_codec() -> None:
    """Declared weights: the mean over the survivors of unequal weight, from floats to floats, mixed lane widths."""
    layout = Layout(
        [Tensor("w", "float32", (6,), 24), Tensor("rows", "int64", ()), Tensor("loss", "float64", (2,), 40)]
    )
    world = World(4, layout=layout)
    sizes = {1: 10, 2: 300, 3: 7, 4: 83}
    total = sum(sizes[u] for u in (1, 2, 4))
    floats, lanes = {}, {}
    for u in world.numbers:
        vector = Vector(layout)
        rng = np.random.default_rng(u)
        vector.fill(
            {"w": rng.normal(size=6).astype(np.float32), "rows": np.array(sizes[u]), "loss": rng.normal(size=2)}
        )
        floats[u] = {name: view.copy() for name, view in vector.views().items()}
        codec = Codec(4, f"site-{u}", {"w": sizes[u] / total})
        for piece in layout.pieces(0, layout.nbytes):
            codec.check(piece.values_in(vector.buffer), piece)
            codec.encode(piece.values_in(vector.buffer), piece.lanes_in(vector.buffer), piece)
        lanes[u] = vector.buffer
    world.plain = lanes
    attempt = world.attempt()
    attempt.hook = lambda step, when, u: attempt.live.pop(3, None) if (step, when) == ("M3", "before") else None
    opened = attempt.run()
    assert set(opened.values()) == {world.sum_over([1, 2, 4])}
    result = Vector(layout)
    result.buffer[:] = np.frombuffer(opened[1], dtype=np.uint8)
    for piece in layout.pieces(0, layout.nbytes):
        Codec(4, "all").decode(piece.lanes_in(result.buffer), piece.values_in(result.buffer), piece)
    views = result.views()
    assert int(views["rows"]) == 393
    mean = sum(sizes[u] / total * floats[u]["w"].astype(float) for u in (1, 2, 4))
    assert np.abs(views["w"] - mean).max() < 3 * 2.0**-24
    assert np.abs(views["loss"] - sum(floats[u]["loss"] for u in (1, 2, 4))).max() < 3 * 2.0**-40


def test_two_rounds_follow_each_other_and_a_missed_round_frees_the_input() -> None:
    """Site 4 masked in round 7, but its vector came late: τ results without it give its input back."""
    world = World(4)
    first = world.attempt()
    first.hook = lambda step, when, u: first.live.pop(4, None) if (step, when) == ("M3v", "before") else None
    x = first.run()[1]
    results = RoundResults(world.roster, world.thresholds, world.state)
    for message in first.relay.messages("M6").values():
        results.receive(message)
    settled = results.settled()
    assert settled is not None
    assert (settled.state, settled.u3) == (world.next_state(x), (1, 2, 3))
    disk = world.disks[4]
    entry = disk.ledger.entry_of(7)
    assert entry is not None
    assert entry.cohort == ()
    caught = CaughtUp(7, settled.state, settled)
    with pytest.raises(PolicyError, match="its input stays bound"):
        release(disk, entry, 3, caught)
    with pytest.raises(PolicyError, match="its input stays bound"):
        release(disk, entry, 4, CaughtUp(6, settled.state, settled))
    release(disk, entry, 4, caught)
    assert disk.ledger.round_of(entry.input) is None
    with pytest.raises(PolicyError, match="ended without this site"):
        disk.admit(entry)
    again = LedgerEntry(9, entry.purpose, entry.input, entry.fingerprint, ())
    disk.admit(again)
    assert disk.ledger.round_of(entry.input) == 9


def test_abandon_counts_as_a_result_and_binds_the_site() -> None:
    """The sum opened for too few; operators of τ sites give the round up. A site that signed M6 cannot."""
    world = World(4)
    attempt = world.attempt()
    attempt.run(stop="M6")
    attempt.each("M6", attempt._m6, [1])
    given_up = world.next_state(b"abandoned")
    results = RoundResults(world.roster, world.thresholds, world.state)
    results.receive(attempt.relay.messages("M6")[1])
    with pytest.raises(PolicyError, match="another next state"):
        abandon(world.identities[1], 1, world.disks[1], world.disks[1].ledger.entry_of(7), world.state, given_up)
    for u in (2, 3, 4):
        assert results.settled() is None
        message = abandon(
            world.identities[u], u, world.disks[u], world.disks[u].ledger.entry_of(7), world.state, given_up
        )
        results.receive(message)
    settled = results.settled()
    assert settled is not None
    assert (settled.state, settled.u3, len(settled.proof)) == (given_up, (), 3)
    with pytest.raises(PolicyError, match="another next state"):
        attempt._m6(attempt.live[2])
    # A site that signs both after all is named.
    forged = sign_message(world.identities[1], "ABANDON", 1, world.state, {"state": given_up.hex()})
    with pytest.raises(PolicyError, match="site site-1 signed two next states"):
        results.receive(forged)
    with pytest.raises(PolicyError, match="from another state"):
        results.receive(sign_message(world.identities[4], "ABANDON", 4, bytes(32), {"state": given_up.hex()}))


def test_results_of_another_set_or_sum_do_not_add_up() -> None:
    """τ M6 must be one body: two of one and one of another settle nothing."""
    world = World(4)
    attempt = world.attempt()
    attempt.run()
    results = RoundResults(world.roster, world.thresholds, world.state)
    for u, message in attempt.relay.messages("M6").items():
        value = parse_canon(message)
        if u > 2:
            value["body"]["u3"] = [1, 2, 3]
        t = bytes.fromhex(value["t"])
        results.receive(sign_message(world.identities[u], "M6", u, t, value["body"]))
    assert results.settled() is None
