"""A site that lost its run directory, or a part of it: it takes part again, or is told the one thing that helps."""

from __future__ import annotations

import shutil

import pytest
from nursery import Child
from relayed_world import PATIENT, WAIT_S, Kind, World, check_ledgers
from theatre import Theatre

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

FOUR = Kind(cohort=f'policy = "sync"\n{PATIENT}', rounds=3)
THREE = Kind(sites=3, cohort=f'policy = "sync"\n{PATIENT}', rounds=3)


def lose(world: World, number: int, point: str, job: str) -> Child:
    dying = world.start_site(number, job, point)
    world.await_frozen(world.site_name(number), dying)
    dying.kill()
    shutil.rmtree(world.run / world.site_name(number))
    return world.start_site(number, job)


# Rounds of these jobs: 1 the first model's statistic, 2 W, 3 a scale, 4 train, 5 measured, 6 a scale, 7 train, ...
HEALED = [
    (THREE, "M1 after 1"),  # keys lost in the first round
    (THREE, "keep after 2"),
    (FOUR, "save after 0"),
    (THREE, "M3 after 3"),
    (FOUR, "M3v half 4"),
    (THREE, "M4 after 4"),
    (FOUR, "M6 after 4"),
    (THREE, "keep after 5"),
    (FOUR, "M1 after 6"),
    (FOUR, "M3 after 6"),
    (THREE, "M3v half 7"),
    (FOUR, "save after 3"),
]


@pytest.mark.parametrize(("kind", "point"), HEALED, ids=lambda v: f"{v.sites}" if isinstance(v, Kind) else v)
def test_a_lost_run_directory_heals(theatre: Theatre, kind: Kind, point: str) -> None:
    with theatre.world(kind, f"lost {kind.sites} {point}") as world:
        world.start_relay()
        sites = world.start_sites([u for u in world.numbers if u != 2], "steady")
        sites[2] = lose(world, 2, point, "steady")
        world.finish(sites)
        world.final()
        check_ledgers(world)


@pytest.mark.parametrize("point", ["M3 after 6", "M3v half 7"])
def test_training_that_does_not_repeat_sits_a_round_out(theatre: Theatre, point: str) -> None:
    with theatre.world(FOUR, f"private {point}") as world:
        world.start_relay()
        sites = world.start_sites([1, 3, 4], "rounds")
        sites[2] = lose(world, 2, point, "rounds")
        world.finish(sites)
        world.final()
        check_ledgers(world)


def test_training_that_does_not_repeat_is_told_where_nobody_can_go_on(theatre: Theatre) -> None:
    with theatre.world(THREE, "private three") as world:
        world.start_relay()
        world.start_sites([1, 3], "rounds")
        again = lose(world, 2, "M3v half 7", "rounds")
        assert again.wait(WAIT_S) == 77, world.texts()
        assert "with other numbers" in again.text() or "begun with another vector" in again.text()
        assert "`fedhpc federation next`" in again.text()
        if "begun with another vector" in again.text():
            assert "start it again as the round was begun, with the same ranks" in again.text()
        check_ledgers(world)


def test_with_the_ledger_lost_too_the_next_epoch_is_told(theatre: Theatre) -> None:
    """Also when it is started again: its own first start must not look like an old one."""
    with theatre.world(FOUR, "both lost") as world:
        world.start_relay()
        world.start_sites([1, 3, 4], "steady")
        dying = world.start_site(2, "steady", "M3v half 7")
        world.await_frozen("bb", dying)
        dying.kill()
        shutil.rmtree(world.run / "bb")
        shutil.rmtree(world.site_file(2).parent / "ledger")
        for _ in range(2):
            again = world.start_site(2, "steady")
            assert again.wait(WAIT_S) == 77, world.texts()
            assert "its ledger knows nothing of it" in again.text()
            assert "`fedhpc federation next --from-model FILE`" in again.text()
        assert world.ledger(2) == []


@pytest.mark.parametrize(("point", "words"), [("M3 after 1", "is of a vector in it"), ("keep after 2", "has its sum")])
def test_a_lost_ledger_beside_its_run_directory_is_told(theatre: Theatre, point: str, words: str) -> None:
    with theatre.world(FOUR, f"ledger lost {point}") as world:
        world.start_relay()
        world.start_sites([1, 3, 4], "steady")
        dying = world.start_site(2, "steady", point)
        world.await_frozen("bb", dying)
        dying.kill()
        shutil.rmtree(world.site_file(2).parent / "ledger")
        again = world.start_site(2, "steady")
        assert again.wait(WAIT_S) == 77, world.texts()
        assert words in again.text(), world.texts()
        assert "`fedhpc federation next`" in again.text()


@pytest.mark.parametrize(("kind", "point"), [(THREE, "M3v after 9"), (FOUR, "keep after 9")], ids=["three", "four"])
def test_a_script_that_lost_its_run_directory_goes_on(theatre: Theatre, kind: Kind, point: str) -> None:
    """All its sums lie beside the ledger too, those of training with them."""
    with theatre.world(kind, f"lost script {point}") as world:
        world.start_relay()
        sites = world.start_sites([u for u in world.numbers if u != 2], "script")
        sites[2] = lose(world, 2, point, "script")
        world.finish(sites)
        ended = [line["after"] for u in world.numbers for line in world.lines(u) if "final" in line]
        assert ended == [sum(u * u for u in world.numbers)] * len(world.numbers)
        world.final()
        check_ledgers(world)


def test_a_script_whose_round_ended_without_it_is_told(theatre: Theatre) -> None:
    with theatre.world(FOUR, "lost script told") as world:
        world.start_relay()
        world.start_sites([1, 3, 4], "script")
        again = lose(world, 2, "M3v after 9", "script")
        assert again.wait(WAIT_S) == 69, world.texts()
        assert "a script takes no later model" in again.text()
        assert "`fedhpc federation next --again`" in again.text()
        check_ledgers(world)
