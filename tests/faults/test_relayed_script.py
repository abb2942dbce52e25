"""Users' own programs over a relay, killed and started again: they get their finished sums, and no key outlives them.

Rounds of the script: 1 patients, 2 the unnamed sum, 3 the weights, then a scale and a training sum in turn (4 and 5,
… 10 and 11), 12 the last sum.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from relayed_world import NAMES, QUORUM, SYNC, TRAINING, World, check_ledgers
from theatre import Theatre

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
LAST = 12


def kept(world: World, number: int) -> list[str]:
    return sorted(p.name for p in (world.run / NAMES[number - 1] / "sums").iterdir() if p.suffix == ".sum")


def attempts(world: World, number: int) -> list[str]:
    return sorted(p.name for p in (world.run / NAMES[number - 1] / "attempts").iterdir())


def check(world: World, final: str = "") -> str:
    """All sites ended alike, with nothing left that opens anything; the final model."""
    for u in world.numbers:
        assert attempts(world, u) == []
    found = {tuple(sorted(line.items())) for u in world.numbers for line in world.lines(u) if "final" in line}
    assert len(found) == 1, world.texts()
    assert dict(found.pop())["after"] == sum(u * u for u in world.numbers)
    first = [line for u in world.numbers for line in world.lines(u) if "patients" in line]
    assert {(line["patients"], line["unnamed"]) for line in first} == {(100, 10)}, "also after a restart"
    check_ledgers(world)
    assert final in ("", world.final())
    return world.final()


@pytest.fixture(scope="module")
def unbroken(theatre: Theatre) -> str:
    with theatre.world(SYNC, "script") as world:
        world.start_relay()
        world.finish(world.start_sites(world.numbers, "script"))
        for u in world.numbers:
            assert kept(world, u) == sorted(f"round-{r}.sum" for r in range(1, LAST + 1))
        return check(world)


@pytest.mark.parametrize("point", ["M1 after 9", "M3v after 9", "M6 saved 9", "keep before 9", "keep after 9"])
def test_a_killed_script_gets_its_finished_sums_and_goes_on(theatre: Theatre, unbroken: str, point: str) -> None:
    with theatre.world(SYNC, f"script {point}") as world:
        world.start_relay()
        sites = world.start_sites([1, 3, 4], "script")
        dying = world.start_site(2, "script", point)
        world.await_frozen("bb", dying)
        dying.kill()
        before = kept(world, 2)
        assert len(before) == (9 if point.startswith("keep after") else 8)
        sites[2] = world.start_site(2, "script")
        world.finish(sites)
        check(world, unbroken)
        assert [line["round"] for line in world.lines(2) if line.get("step") == 0] == [5, 5], "asked again, and given"


def test_scripts_that_are_all_killed_go_on(theatre: Theatre, unbroken: str) -> None:
    with theatre.world(SYNC, "script all") as world:
        world.start_relay()
        dying = {u: world.start_site(u, "script", "keep before 9") for u in world.numbers}
        for u, child in dying.items():
            world.await_frozen(NAMES[u - 1], child)
        for child in dying.values():
            child.kill()
        world.finish(world.start_sites(world.numbers, "script"))
        check(world, unbroken)


def test_a_script_that_forgot_goes_on_from_what_it_saved(theatre: Theatre, unbroken: str) -> None:
    """Killed two sums after `forget`: nothing before is on the disk any more, and nothing of it is asked for."""
    with theatre.world(SYNC, "script forget") as world:
        world.start_relay()
        sites = world.start_sites([1, 3, 4], "forgetful")
        dying = world.start_site(2, "forgetful", "keep after 9")
        world.await_frozen("bb", dying)
        dying.kill()
        assert kept(world, 2) == ["round-8.sum", "round-9.sum"]
        sites[2] = world.start_site(2, "forgetful")
        world.finish(sites)
        for u in world.numbers:
            assert attempts(world, u) == []
            assert kept(world, u) == sorted(f"round-{r}.sum" for r in range(8, LAST + 1))
        assert world.final() == unbroken
        check_ledgers(world)
        (world.folder / "saved-bb.pt").unlink()  # it asks for what it forgot
        again = world.start_site(2, "forgetful")
        assert again.wait(60) == 69, world.texts()
        assert "start from what was saved" in again.text()


def freeze_all(world: World, job: str, point: str) -> None:
    """Every site killed at the same place."""
    dying = {u: world.start_site(u, job, point) for u in world.numbers}
    for u, child in dying.items():
        world.await_frozen(NAMES[u - 1], child)
    for child in dying.values():
        child.kill()


def test_all_sites_killed_between_the_results_and_the_checkpoint_settle_later(theatre: Theatre) -> None:
    """τ M6 are out, and no site has the model: the attempt files are all that the round can go on from."""
    with theatre.world(TRAINING, "all between") as world:
        world.start_relay()
        freeze_all(world, "rounds", "save before 2")
        for u in world.numbers:
            assert any(name.endswith(".attempt") for name in attempts(world, u))
        world.finish(world.start_sites(world.numbers, "rounds"))
        assert world.final() == theatre.unbroken()
        assert not any(attempts(world, u) for u in world.numbers)


def leaving(world: World, job: str, at: str) -> None:
    """Every site leaves at the same message, cleanly."""
    children = [world.start_site(u, job, FEDHPC_TEST_LEAVE=at) for u in world.numbers]
    for child in children:
        assert child.wait(60) == 75, world.texts()


def test_a_clean_leave_after_the_vector_has_left_keeps_its_keys(theatre: Theatre) -> None:
    with theatre.world(TRAINING, "leave after") as world:
        world.start_relay()
        leaving(world, "rounds", "M3 7")
        for u in world.numbers:
            assert attempts(world, u) == ["round-7.attempt", "round-7.key"]
        world.finish(world.start_sites(world.numbers, "rounds"))
        assert world.final() == theatre.unbroken()
        assert not any(attempts(world, u) for u in world.numbers)


def test_a_clean_leave_before_the_vector_has_left_erases_its_keys(theatre: Theatre) -> None:
    """The next job makes new ones, in the next attempt."""
    with theatre.world(TRAINING, "leave before") as world:
        world.start_relay()
        leaving(world, "rounds", "M1 7")
        assert not any(attempts(world, u) for u in world.numbers)
        assert not [name for name in world.objects(7) if "M3" in name]
        log = world.folder / "relay.log"
        world.until(lambda: "round 7, attempt 1 is given up" in log.read_text(), "the end of the attempt", 90)
        left = log.read_text().count("leaves for a while")
        world.finish(world.start_sites(world.numbers, "rounds"))
        assert log.read_text().count("leaves for a while") == left, "it would go for the next attempt, over three sites"
        assert world.final() == theatre.unbroken()
        assert not any(attempts(world, u) for u in world.numbers)


def test_without_its_keys_a_site_is_silent_in_that_attempt(theatre: Theatre) -> None:
    """The relay has other keys of it: no evidence against anybody, so it waits for the next attempt, or the end."""
    with theatre.world(QUORUM, "silent") as world:
        world.start_relay()
        sites = world.start_sites([1, 3, 4])
        dying = world.start_site(2, "sums", "M1 after 2")
        world.await_frozen("bb", dying)
        dying.kill()
        shutil.rmtree(world.run / "bb" / "attempts")
        again = world.start_site(2)
        world.finish(sites)
        assert again.wait(60) == 69, world.texts()
        assert "round 2" in again.text()
        assert "other-bytes" not in again.text()


def modes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): f"{p.stat().st_mode & 0o7777:o}" for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("umask", ["000", "077"])
def test_a_run_is_its_owners_only_whatever_the_umask(theatre: Theatre, umask: str) -> None:
    with theatre.world(TRAINING, f"umask {umask}") as world:
        world.start_relay()
        sites = {u: world.start_site(u, "rounds", FEDHPC_TEST_UMASK=umask) for u in world.numbers}
        world.finish(sites)
        assert f"{world.run.stat().st_mode & 0o7777:o}" == "700"
        for name, mode in modes(world.run).items():
            assert mode == ("700" if (world.run / name).is_dir() else "600"), name
