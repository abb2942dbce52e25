"""Whole rounds among sites and a relay in memory: X is the plain integer sum over U3, bit for bit."""

from __future__ import annotations

import pytest
from protocol_fakes import World

from fedhpc.secure.transcript import parse_canon


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
