"""Attacks with the relay's own coordinator and sites as processes that are killed: where an attack needs either.

Each is stopped by the named error before the victim's next message; what had been released by then is looked up in the
relay's store. All others are made within one process: wire_table.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from harness import PATIENCE
from hostile_relay import ROUND
from relayed_world import QUORUM, World, check_ledgers, check_sums
from theatre import Theatre

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

ORDER = ("READY", "M1", "M2", "M3", "M4", "M5", "M6")
WAIT_S = 60.0 * PATIENCE


def released_nothing(world: World, victims: tuple[int, ...], stopped: str) -> None:
    """No message from `stopped` on; before M4 not one byte of a vector, and before M6 no set in the ledger."""
    sent = world.objects(ROUND)
    for later in ORDER[ORDER.index(stopped) :]:
        assert not {f"1/{later}.{u}" for u in victims} & sent, sent
    for u in victims:
        if stopped in ORDER[:4]:
            assert f"1/M3v.{u}" not in sent
            assert not world.upload_begun(ROUND, u)
        sets = [e["cohort"] for e in world.ledger(u) if e["round"] == ROUND and e["cohort"]]
        assert not sets or stopped == "M6"
    check_ledgers(world)


def both_shares_of_a_site_are_never_asked_out(world: World) -> None:
    """Site 2 has signed M4 over all sites and is killed; the relay then shows it a set without site 4."""
    world.start_relay("survivors changed", body="hostile_relay")
    sites = world.start_sites([1, 3, 4])
    dying = world.start_site(2, "sums", f"M4 after {ROUND}")
    world.await_frozen("bb", dying)
    dying.kill()
    again = world.start_site(2)
    assert again.wait(WAIT_S) == 77, world.texts()
    assert "PolicyError: the relay shows another set of survivors" in again.text()
    for child in sites.values():
        child.kill()
    released_nothing(world, (2,), "M5")


def the_others_go_on_without_a_site_that_was_lied_to(world: World) -> None:
    world.start_relay("M0 state", body="hostile_relay")
    sites = world.start_sites(world.numbers)
    assert sites.pop(2).wait(WAIT_S) == 77
    world.finish(sites)
    check_sums(world, [1, 3, 4])
    assert world.members(world.sums(1)["two"]) == [1, 3, 4]


def withheld_messages_cost_an_attempt(world: World) -> None:
    """Every M4 is withheld from all others: nobody answers, the attempt is given up, the next one is exact."""
    world.start_relay("messages dropped", body="hostile_relay")
    sites = world.start_sites(world.numbers)
    world.until(lambda: "2/M1.1" in world.objects(ROUND), "a second attempt")
    assert not [name for name in world.objects(ROUND) if name.startswith("1/M5")]
    world.finish(sites)
    check_sums(world, world.numbers)
    assert world.members(world.sums(1)["two"]) == world.numbers


def a_changed_vector_on_retry(world: World) -> None:
    """A site that was killed after its vector had gone comes back with other numbers: its own files stop it.

    At the first sum, of which it kept the result with what it had put in; without that the ledger would, at the round.
    """
    world.start_relay()
    sites = world.start_sites([1, 3, 4])
    dying = world.start_site(2, "sums", f"vector after {ROUND}")
    world.await_frozen("bb", dying)
    dying.kill()
    again = world.start_site(2, seed=1)
    assert again.wait(WAIT_S) == 77, world.texts()
    assert "PolicyError: " in again.text()
    assert "was summed in round 1 already, with other numbers of this site" in again.text()
    world.finish(sites)
    check_sums(world, [1, 3, 4])
    released_nothing(world, (2,), "M3")


SCENES: tuple[Callable[[World], None], ...] = (
    a_changed_vector_on_retry,
    the_others_go_on_without_a_site_that_was_lied_to,
    withheld_messages_cost_an_attempt,
    both_shares_of_a_site_are_never_asked_out,
)


@pytest.fixture(scope="module")
def played(theatre: Theatre, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """All scenes that were asked for, at once: most of each is waiting for deadlines."""

    def play(scene: Callable[[World], None]) -> None:
        with theatre.world(QUORUM, scene.__name__) as world:
            scene(world)

    specs = [getattr(item, "callspec", None) for item in request.session.items]
    asked = [spec.params["scene"] for spec in specs if spec is not None and "scene" in spec.params]
    with ThreadPoolExecutor(len(SCENES)) as pool:
        yield {scene.__name__: pool.submit(play, scene) for scene in asked}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_scene(scene: Callable[[World], None], played: dict[str, Future[None]]) -> None:
    played[scene.__name__].result()
