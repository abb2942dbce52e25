"""Cells that are no plain kill: stalls, cut connections, full disks, wrong clocks, more losses than allowed.

Each function plays one cell and says what came of it; cells() lists them.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

from nursery import Child
from relayed_cells import ROUND, Cell, die
from relayed_world import QUORUM, SHORT, SYNC, Kind, World, check_ledgers, check_sums

STRICT = Kind(cohort=f'policy = "sync"\n{SHORT}')
AWAY = Kind(cohort=f'policy = "quorum"\n{SHORT}', rounds=6)
SEVEN = Kind(sites=7, cohort=f'policy = "quorum"\n{SHORT}')
STALL_S = 7.0  # longer than every deadline of SHORT: the length of the fault, nothing waits for it to be over
DAY_S = 86400.0


def ended(world: World, child: Child, code: int, *words: str) -> None:
    """The site ended with this code, and said this."""
    assert child.wait(100) == code, world.texts()
    for word in words:
        assert word in child.text(), world.texts()


def exact(world: World, sites: list[int], members: list[int] | None = None) -> str:
    check_sums(world, sites)
    if members is not None:
        assert world.members(world.sums(sites[0])["two"]) == members, world.texts()
    check_ledgers(world)
    return "sum over all" if members == world.numbers else "sum over the rest" if members else "exact sum"


# --- stalls


def site_stalls(cell: Cell, world: World) -> str:
    """A site stops for longer than the deadline and then goes on: it is told that the round ended without it."""
    world.start_relay()
    rest = [u for u in world.numbers if u != cell.victim]
    sites = world.start_sites(rest)
    slow = world.start_site(cell.victim, "sums", f"{cell.point} {ROUND}", FEDHPC_TEST_ACTION="stop")
    world.await_frozen(world.site_name(cell.victim), slow)
    world.finish(sites)
    slow.signal(signal.SIGCONT)
    counted = cell.point.startswith("M5")
    ended(world, slow, 69, "RoundOverError" if not counted else "error: ")
    return exact(world, rest, world.numbers if counted else rest)


def relay_stalls(cell: Cell, world: World) -> str:
    """The relay stops for longer than its own deadlines, and finds them over when it goes on."""
    relay = world.start_relay(f"{cell.point} {ROUND}", FEDHPC_TEST_ACTION="stop")
    sites = world.start_sites(world.numbers)
    world.await_frozen("relay", relay)
    time.sleep(STALL_S)
    relay.signal(signal.SIGCONT)
    for child in sites.values():
        child.wait(100)
    done = [u for u, child in sites.items() if child.code == 0]
    assert len(done) >= world.kind.thresholds.threshold, world.texts()
    for u, child in sites.items():
        assert u in done or "RoundOverError" in child.text(), world.texts()
    return exact(world, done)


# --- connections


class Wire:
    """Forwards TCP to the relay. Each connection is cut after the next of `budgets` bytes, while there are any."""

    def __init__(self, port: int, budgets: list[int]) -> None:
        self._port, self._budgets = port, budgets
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        budget = [self._budgets.pop(0)] if self._budgets else []
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as far:
            back = threading.Thread(target=self._pump, args=(far, near, budget), daemon=True)
            back.start()
            self._pump(near, far, budget)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, budget: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if budget:
                    budget[0] -= len(data)
                    if budget[0] < 0:
                        self.cuts += 1
                        break
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def connections_cut(cell: Cell, world: World) -> str:
    """The first four connections of a site are cut after so many bytes: in handshakes, heads, vectors, the sum."""
    world.start_relay()
    wire = Wire(world.port, [int(cell.point)] * 4)
    file = world.site_file(cell.victim)
    file.write_text(file.read_text().replace(f"127.0.0.1:{world.port}", f"127.0.0.1:{wire.port}"))
    world.finish(world.start_sites(world.numbers))
    wire.close()
    assert wire.cuts >= 1
    return exact(world, world.numbers, world.numbers)


# --- the relay's disk


def disk_is_full(cell: Cell, world: World, limit: str = "full") -> str:
    """From the point on the relay can write no file beyond a limit, until the operator makes room."""
    relay = world.start_relay(f"{cell.point} {ROUND}", FEDHPC_TEST_ACTION=limit)
    sites = world.start_sites(world.numbers)
    world.await_frozen("relay", relay)
    if cell.point == "Y adding":  # vectors still arrive: some sites are refused, others wait for those
        world.until(lambda: "disk-full" in (world.folder / "relay.log").read_text(), "the full disk")
        for child in sites.values():
            child.kill()
    else:
        for child in sites.values():
            ended(world, child, 69, "disk-full")
    check_nothing_is_half_there(world)
    resource.prlimit(relay.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    world.finish(world.start_sites(world.numbers))
    return exact(world, world.numbers, world.numbers)


def check_nothing_is_half_there(world: World) -> None:
    """No object of the round is visible that could be taken for a sum."""
    assert not any(name.endswith(("/Y", "/M4r")) for name in world.objects(ROUND)), world.objects(ROUND)


def store_is_lost(cell: Cell, world: World) -> str:
    """The relay's disk is lost in the middle of a round: it starts with an empty one, and so do the sites."""
    relay = world.start_relay(f"{cell.point} {ROUND}")
    sites = world.start_sites(world.numbers)
    world.await_frozen("relay", relay)
    for child in (relay, *sites.values()):
        child.kill()
    shutil.rmtree(world.store)
    world.start_relay()
    world.finish(world.start_sites(world.numbers))
    return exact(world, world.numbers, world.numbers)


# --- clocks


def clock_of_a_site(cell: Cell, world: World) -> str:
    """A site's clock is wrong: nothing changes while certificates hold, beyond that it says so and sums nothing."""
    world.start_relay()
    rest = [u for u in world.numbers if u != cell.victim]
    shift = float(cell.point) * DAY_S
    sites = world.start_sites(rest)
    first = world.start_site(cell.victim, "sums", f"M1 after {ROUND}")
    world.await_frozen(world.site_name(cell.victim), first)
    first.kill()
    again = world.start_site(cell.victim, FEDHPC_TEST_SKEW=str(shift))
    if abs(shift) < DAY_S:
        world.finish(sites | {cell.victim: again})
        return exact(world, world.numbers)
    said = "ended on" if shift > 0 else "begins only on"
    ended(world, again, 77, "PolicyError", said, "the clock here", "compare `date -u`")
    world.finish(sites)
    return exact(world, rest, rest)


def clock_of_the_relay(cell: Cell, world: World) -> str:
    """The relay's clock is wrong by more than the certificates last: it takes nobody in; put right, the run goes on."""
    world.start_relay(FEDHPC_TEST_SKEW=str(float(cell.point) * DAY_S))
    sites = world.start_sites(world.numbers)
    if abs(float(cell.point)) >= 1:
        for child in sites.values():
            ended(world, child, 77, "PolicyError", "certificate has expired")
        assert not world.store.joinpath(world.config).exists()
        world.stop_relay()
        world.start_relay()
        sites = world.start_sites(world.numbers)
    world.finish(sites)
    return exact(world, world.numbers, world.numbers)


# --- several losses


def several_lost(cell: Cell, world: World) -> str:
    """As many sites as the thresholds allow for are killed, each at another moment, and stay away."""
    world.start_relay()
    victims = {cell.victim: "M2 after", cell.victim % world.kind.sites + 1: "M3v half"}
    assert len(victims) == world.kind.thresholds.losses
    rest = [u for u in world.numbers if u not in victims]
    sites = world.start_sites(rest)
    dying = {u: world.start_site(u, "sums", f"{point} {ROUND}") for u, point in victims.items()}
    for u, child in dying.items():
        world.await_frozen(world.site_name(u), child)
        child.kill()
    world.finish(sites)
    return exact(world, rest, rest)


def away_for_rounds(cell: Cell, world: World) -> str:
    """A site dies, is away for rounds that the others train, and catches up: one final hash for all."""
    world.start_relay()
    sites = world.start_sites((u for u in world.numbers if u != cell.victim), "rounds")
    die(cell, world, "rounds", 7)  # the second update
    world.until(lambda: "0/DONE" in world.objects(10), "rounds without it")
    sites[cell.victim] = world.start_site(cell.victim, "rounds")
    world.finish(sites)
    world.final()
    check_ledgers(world)
    return "same final hash"


def too_many_lost(cell: Cell, world: World) -> str:
    """One more than the thresholds allow for: the attempt is given up, and nothing opens until they are back."""
    world.start_relay()
    count = world.kind.thresholds.losses + 1
    victims = [(cell.victim + i - 1) % world.kind.sites + 1 for i in range(count)]
    rest = [u for u in world.numbers if u not in victims]
    sites = world.start_sites(rest)
    dying = {u: world.start_site(u, "sums", f"{cell.point} {ROUND}") for u in victims}
    for u, child in dying.items():
        world.await_frozen(world.site_name(u), child)
    for child in dying.values():
        child.kill()
    world.until(lambda: "1/NEXT" in world.objects(ROUND), "the attempt to be given up")
    assert not any("two" in world.sums(u) for u in world.numbers)
    sites |= world.start_sites(victims)
    world.finish(sites)
    return exact(world, world.numbers)


def cells() -> Iterator[Cell]:
    for number, point in enumerate(("M1 saved", "M3v half", "M5 saved")):
        yield Cell("site", "stalls", point, number + 2, QUORUM, site_stalls)
    for point in ("M1 after", "M3v half", "M5 after"):
        yield Cell("relay", "stalls", point, 0, QUORUM, relay_stalls)
    for number, count in enumerate((500, 4000, 30_000, 700_000, 1_500_000)):
        yield Cell("connection", "cut", str(count), number % 4 + 1, SYNC, connections_cut)
    for point in ("A1 after", "M3v half", "Y adding"):
        yield Cell("relay", "disk full", point, 0, SYNC, disk_is_full)
    yield Cell("relay", "disk full", "U1 after", 0, SYNC, partial(disk_is_full, limit="tiny"))
    for point in ("U1 after", "M3v half", "Y adding", "M5 after"):
        yield Cell("relay", "store lost", point, 0, SYNC, store_is_lost)
    for days in ("0.002", "-0.002", "-2", "9000"):
        yield Cell("site", "clock", days, 2, QUORUM, clock_of_a_site)
    for days in ("0.02", "-0.002", "60"):
        yield Cell("relay", "clock", days, 0, SYNC, clock_of_the_relay)
    yield Cell("site", "lost", "2 of 7", 6, SEVEN, several_lost)
    for number, point in enumerate(("READY before", "M3v half", "M5 saved")):
        yield Cell("site", "away", point, number + 2, AWAY, away_for_rounds)
    for point in ("M1 after", "M3v half", "M4 before", "M5 saved"):
        yield Cell("site", "d+1 lost", point, 2, STRICT, too_many_lost)
    for point in ("M3v begin", "M5 before"):
        yield Cell("site", "d+1 of 7 lost", point, 3, SEVEN, too_many_lost)


__all__ = ["cells", "die"]
