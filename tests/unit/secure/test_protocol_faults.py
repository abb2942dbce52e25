"""The fault matrix: every message × every victim × every moment, generated; `pytest -m faults -s` prints it.

Whatever dies, the sites end with the exact plain sum over the survivors, or the attempt ends cleanly and a new one of
the same round gives the exact sum over its set; never do two sets of one round open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest
from protocol_fakes import STEPS, Attempt, Crash, Memory, Site, World, audit

from fedhpc.errors import PeersError, PolicyError
from fedhpc.relay.rounds.machine import opened_set
from fedhpc.secure.results import RoundResults

MOMENTS = ("before", "unsaved", "between", "saved", "after")
FATES = ("lost", "with file", "no file")
SIZES = (4, 7)
CELLS: Counter[tuple[str, ...]] = Counter()


@dataclass(frozen=True)
class Cell:
    sites: int
    step: str
    moment: str
    victims: tuple[int, ...]
    fate: str


def cells(sites: int) -> Iterator[Cell]:
    losses = World(sites).thresholds.losses
    singles = range(1, sites + 1) if sites <= 4 else (1, sites // 2 + 1, sites)
    for step in STEPS:
        for moment in MOMENTS:
            if step == "M3v" and moment in ("unsaved", "between"):
                continue  # an upload writes nothing on the site's disk
            for fate in FATES:
                for u in singles:
                    yield Cell(sites, step, moment, (u,), fate)
                for many in range(2, losses + 2):
                    first = (STEPS.index(step) + MOMENTS.index(moment)) % sites
                    yield Cell(sites, step, moment, tuple((first + i) % sites + 1 for i in range(many)), fate)


def kill_sites(world: World, attempt: Attempt, cell: Cell) -> set[int]:
    """Arrange that the victims die at the cell's moment, once, and what becomes of them; the set of who died."""
    dead: set[int] = set()

    def die(u: int) -> None:
        dead.add(u)
        world.disks[u].trap = lambda when: None
        raise Crash

    def hook(step: str, when: str, u: int) -> None:
        if u not in cell.victims or u in dead or step != cell.step:
            return
        moment = {"before": "before", "after": "after", "saved": "saved", "during": "saved"}[when]
        if when == "before" and cell.moment in ("unsaved", "between"):
            writes = count()

            def trap(when: str) -> None:
                if when == "before" and cell.moment == "unsaved":
                    die(u)
                if when == "after" and cell.moment == "between" and next(writes) == 0:
                    die(u)

            world.disks[u].trap = trap
        elif moment == cell.moment:
            die(u)
        if when == "after":
            world.disks[u].trap = lambda when: None

    def comeback(step: str, u: int, act: Callable[[Site], None]) -> None:
        if cell.fate == "lost":
            return
        disk = world.disks[u]
        if cell.fate == "no file":
            disk.private = None
        spoke = f"M1/{u}" in attempt.objects.small
        site = Site(attempt, u, restarted=True)
        try:
            attempt.replay(site, "M3" if step == "M3v" else step)
            if step == "M3v":
                attempt._m3(site)
            act(site)
        except PolicyError:
            # Without its file a site that spoke in an attempt is silent for the rest of it.
            assert cell.fate == "no file"
            assert spoke
            return
        assert cell.fate == "with file" or not spoke or step == "M1"
        attempt.live[u] = site

    attempt.hook, attempt.comeback = hook, comeback
    return dead


def settle(world: World) -> tuple[bytes, tuple[int, ...]] | None:
    """What the M6 of all attempts agree on."""
    results = RoundResults(world.roster, world.thresholds, world.state)
    for attempt in world.attempts:
        for message in attempt.relay.messages("M6").values():
            results.receive(message)
    found = results.settled()
    return None if found is None else (found.state, found.u3)


def play(world: World, attempt: Attempt) -> str:
    """Run an attempt with its faults, and a clean one if the round is not settled then; what became of the first."""
    try:
        attempt.run()
        outcome = "sum"
    except PeersError:
        outcome = "abort"
    for x in attempt.opened.values():
        assert x == world.sum_over(attempt.relay.u3)
    audit(world)
    if settle(world) is None:
        outcome = "abort" if outcome == "abort" else "late"
        opened = opened_set(a.relay for a in world.attempts)
        again = world.attempt(opened.u3 if opened else world.numbers)
        assert set(again.run().values()) == {world.sum_over(again.cohort)}
        audit(world)
    settled = settle(world)
    assert settled is not None
    state, u3 = settled
    assert state == world.next_state(world.sum_over(u3))
    return outcome


@pytest.mark.faults
@pytest.mark.parametrize("sites", SIZES)
@pytest.mark.parametrize("step", STEPS)
def test_sites_die(sites: int, step: str) -> None:
    for cell in cells(sites):
        if cell.step != step:
            continue
        world = World(sites)
        attempt = world.attempt()
        dead = kill_sites(world, attempt, cell)
        outcome = play(world, attempt)
        assert dead == set(cell.victims), cell
        lost = len(cell.victims)
        if lost <= world.thresholds.losses and step != "M6":
            assert outcome == "sum", cell
        if cell.fate == "with file":
            assert outcome == "sum", cell
        if cell.fate == "with file" or step in ("M4", "M5", "M6"):
            assert attempt.relay.u3 == tuple(world.numbers), cell  # who is lost after its vector arrived is counted
        CELLS[("site", f"N={sites}", cell.fate, f"{lost} lost", step, cell.moment, outcome)] += 1


def relay_moments(sites: int) -> list[tuple[str, str, int]]:
    """Every write of the relay in a clean attempt: (moment, name, how often that name was written before)."""
    attempt = World(sites).attempt()
    seen: Counter[tuple[str, str]] = Counter()
    found = []

    def trap(when: str, name: str) -> None:
        found.append((when, name, seen[when, name]))
        seen[when, name] += 1

    attempt.objects.trap = trap
    attempt.run()
    return found


@pytest.mark.faults
@pytest.mark.parametrize("sites", SIZES)
def test_the_relay_dies_at_every_write(sites: int) -> None:
    for moment, name, nth in relay_moments(sites):
        world = World(sites)
        attempt = world.attempt()
        seen: Counter[tuple[str, str]] = Counter()

        def trap(
            when: str,
            at: str,
            attempt: Attempt = attempt,
            seen: Counter[tuple[str, str]] = seen,
            here: tuple[str, str, int] = (moment, name, nth),
        ) -> None:
            seen[when, at] += 1
            if (when, at, seen[when, at] - 1) == here:
                raise Crash

        attempt.objects.trap = trap
        opened = attempt.run()
        assert sorted(opened) == world.numbers
        assert set(opened.values()) == {world.sum_over(world.numbers)}
        assert settle(world) is not None
        audit(world)
        CELLS[("relay", f"N={sites}", "restarted", "0 lost", name.split("/")[0], moment, "sum")] += 1


@pytest.mark.faults
@pytest.mark.parametrize("sites", SIZES)
def test_everybody_dies_between_ledger_and_answer(sites: int) -> None:
    """The relay saw no answer and proposes all sites again: the ledgers refuse, and the old set opens."""
    world = World(sites)
    first = world.attempt()

    def hook(step: str, when: str, u: int) -> None:
        if (step, when, u) == ("M3", "before", 1):
            raise Crash
        if step == "M5" and when == "before":
            world.disks[u].trap = crash_after
        if step == "M5" and when == "after":
            world.disks[u].trap = lambda when: None

    def crash_after(when: str) -> None:
        if when == "after":
            raise Crash

    first.hook = hook
    with pytest.raises(PeersError):
        first.run()
    for disk in world.disks.values():
        disk.trap = lambda when: None
    assert opened_set([first.relay]) is None
    with pytest.raises(PolicyError, match=r"was opened over sites \[2, 3"):
        world.attempt().run()
    audit(world)
    rest = world.numbers[1:]
    assert set(world.attempt(rest).run().values()) == {world.sum_over(rest)}
    audit(world)
    CELLS[("site", f"N={sites}", "lost", "all lost", "M5", "between", "abort")] += 1


@pytest.mark.faults
def test_the_matrix_is_whole() -> None:
    """Prints the matrix; the number of executed cells is asserted, so a cell that silently falls out is noticed."""
    by_kind = Counter(key[:2] for key in CELLS.elements())
    planned = {("site", f"N={n}"): sum(1 for _ in cells(n)) + 1 for n in SIZES}
    planned |= {("relay", f"N={n}"): len(relay_moments(n)) for n in SIZES}
    rows: dict[tuple[str, ...], Counter[str]] = {}
    for key, n in CELLS.items():
        rows.setdefault(key[:5], Counter())[key[6]] += n
    print()
    for row, outcomes in sorted(rows.items()):
        print(f"{' | '.join(row):48} {dict(outcomes)}")
    print(f"cells: {dict(by_kind)}, {sum(by_kind.values())} in all")
    assert dict(by_kind) == planned


def test_relay_memory_is_a_few_chunks() -> None:
    world = World(4)
    world.attempt().run()
    assert isinstance(world.attempts[0].objects, Memory)
    assert world.attempts[0].objects.largest_read <= 1 << 20
