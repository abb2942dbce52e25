"""The cells of the real-process matrix: generated from every step of a round, and how each is played.

A cell is (what dies, where, what becomes of it). The victim goes round through the sites, so each of them is one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from relayed_world import MEMORY, QUORUM, SYNC, TRAINING, Kind, World, check_ledgers, check_sums

ROUND = 2  # whose vector has three blocks
MESSAGES = ("READY", "M1", "M2", "M3", "M4", "M5", "M6")
SITE_POINTS = (
    *(f"{m} {when}" for m in MESSAGES for when in ("before", "saved", "after") if (m, when) != ("READY", "saved")),
    *(f"M3v {when}" for when in ("begin", "half", "commit", "after")),
    *(f"{line} {when}" for line in ("vector", "set", "state") for when in ("before", "after")),
    "Y half",
    "keep before",
    "keep after",
)
# For the others a site that is gone for good is what the relay has of it: a cell for each such state.
LOST_POINTS = (
    "READY before",
    *(f"{m} after" for m in MESSAGES),
    *(f"M3v {when}" for when in ("begin", "half", "commit", "after")),
    "Y half",
)
TRAINING_POINTS = (
    *("proof before", "proof after", "save before", "save half", "save after"),
    *("M3v half", "M5 saved", "M6 saved", "Y half"),
    *("keep before", "keep after"),  # of what was measured, after the checkpoint
)
OWN = ("M0", "A1", "U1", "U2", "Y", "M4r", "DONE")
RELAY_POINTS = (
    *(f"{name} {when}" for name in OWN for when in ("before", "half", "after")),
    "Y adding",
    *(f"{name} {when}" for name in ("M1", "M3", "M3v", "M5") for when in ("before", "after")),
    "M3v half",
)
UNSYNCED_POINTS = ("M3v half", "M3v after", "Y adding", "Y half", "M4r before")  # a kill loses nothing there either
BOTH_WAYS = {"M3 after", "M3v after"}  # M3 and the end of the vector travel at the same time, and both are needed
ARRIVED = {"M4", "M5", "M6", "Y"}  # steps after a site's vector is whole at the relay


@dataclass(frozen=True)
class Cell:
    """`who` and `fate` name its row in the table; `play` raises AssertionError, and says what came of it."""

    who: str
    fate: str
    point: str
    victim: int
    kind: Kind
    play: Callable[[Cell, World], str]

    @property
    def name(self) -> str:
        return f"{self.who}-{self.fate}-{self.point}".replace(" ", "-")


def restarted(cell: Cell, world: World) -> str:
    """Killed at the point and started again: the exact sum over all sites, everywhere."""
    world.start_relay()
    sites = world.start_sites(u for u in world.numbers if u != cell.victim)
    die(cell, world)
    sites[cell.victim] = world.start_site(cell.victim)
    world.finish(sites)
    check_sums(world, world.numbers)
    assert {tuple(world.members(world.sums(u)["two"])) for u in world.numbers} == {tuple(world.numbers)}
    check_ledgers(world)
    return "sum over all"


def lost(cell: Cell, world: World) -> str:
    """Killed at the point and gone: the exact sum over the others, or over all where its vector had arrived."""
    world.start_relay()
    rest = [u for u in world.numbers if u != cell.victim]
    sites = world.start_sites(rest)
    die(cell, world)
    world.finish(sites)
    check_sums(world, rest)
    members = world.members(world.sums(rest[0])["two"])
    counted = cell.point.split()[0] in ARRIVED or (cell.point in BOTH_WAYS and cell.victim in members)
    assert members == (world.numbers if counted else rest), world.texts()
    check_ledgers(world)
    return "sum over all" if counted else "sum over the rest"


def without_its_file(cell: Cell, world: World) -> str:
    """Killed, its attempt file lost, and started again: silent in that attempt; nothing opens twice."""
    world.start_relay()
    rest = [u for u in world.numbers if u != cell.victim]
    sites = world.start_sites(rest)
    die(cell, world)
    shutil.rmtree(world.run / world.site_name(cell.victim) / "attempts")
    again = world.start_site(cell.victim)
    world.finish(sites)
    check_sums(world, rest)
    again.kill()
    check_ledgers(world)
    return "sum"


def training(cell: Cell, world: World) -> str:
    """A site of the main loop, killed and started again: the final model is that of a run without faults."""
    world.start_relay()
    sites = world.start_sites((u for u in world.numbers if u != cell.victim), "rounds")
    # Sums 1 to 3 are start, W and a scale; then train, measured, scale (6), train (7), measured (8) and so on.
    step = cell.point.split()[0]
    die(cell, world, "rounds", {"save": 2, "keep": 8}.get(step, 7))
    sites[cell.victim] = world.start_site(cell.victim, "rounds")
    world.finish(sites)
    assert world.final() == world.unbroken()
    return "same final hash"


def die(cell: Cell, world: World, job: str = "sums", round_: int = ROUND) -> None:
    child = world.start_site(cell.victim, job, f"{cell.point} {round_}")
    world.await_frozen(world.site_name(cell.victim), child)
    child.kill()


def relay_restarted(cell: Cell, world: World) -> str:
    """The relay dies there and is started again: it goes on, and the sum is that over all sites."""
    relay = world.start_relay(f"{cell.point} {ROUND}")
    sites = world.start_sites(world.numbers)
    world.await_frozen("relay", relay)
    relay.kill()
    world.start_relay()
    world.finish(sites)
    check_sums(world, world.numbers)
    assert {tuple(world.members(world.sums(u)["two"])) for u in world.numbers} == {tuple(world.numbers)}
    check_ledgers(world)
    return "sum over all"


def cells() -> Iterator[Cell]:
    for number, point in enumerate(SITE_POINTS):
        yield Cell("site", "restarted", point, number % 4 + 1, SYNC, restarted)
    for number, point in enumerate(LOST_POINTS):
        yield Cell("site", "lost", point, (number + 2) % 4 + 1, QUORUM, lost)
    for number, point in enumerate(("M2 after", "M3v half", "M5 saved")):
        yield Cell("site", "no file", point, number + 2, QUORUM, without_its_file)
    for number, point in enumerate(TRAINING_POINTS):
        yield Cell("site", "training", point, (number + 1) % 4 + 1, TRAINING, training)
    for point in RELAY_POINTS:
        yield Cell("relay", "restarted", point, 0, SYNC, relay_restarted)
    for point in UNSYNCED_POINTS:
        yield Cell("relay", "unsynced", point, 0, MEMORY, relay_restarted)
