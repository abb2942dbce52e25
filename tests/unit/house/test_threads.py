"""What threads share at carrier, relay and client. In each test another thread comes in where it would hurt."""

from __future__ import annotations

import datetime
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from meddling import PATIENCE_S, MeddledDict, MeddledList, MeddledNumber, MeddledSet, Meddler
from relay_fakes import CONFIG, LAYOUT, OTHER, STATE, Relay, federation, relay_toml
from spool_fakes import FakeClient, FakeRelay, name, spool_in

from fedhpc.enrolment.certificates import issue_new, new_authority
from fedhpc.relay.http.server import RelayServer
from fedhpc.relay.rounds import round_threads as coordinator
from fedhpc.relay.rounds.heard import Heard
from fedhpc.relay.rounds.one_round import Round
from fedhpc.relay.rounds.phase_times import KEPT, PhaseTimes
from fedhpc.relay.rounds.ready import Ready
from fedhpc.relay.settings import Roster, read_settings
from fedhpc.secure.ring import Codec
from fedhpc.secure.suite import SHA256
from fedhpc.sums.blocks import _Tools
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.transport.https.retry import Clock
from fedhpc.transport.listing import Entry
from fedhpc.transport.spool.carrier import Carrier
from fedhpc.transport.spool.carrier_listing import ListedAttempt
from fedhpc.transport.spool.carrier_notes import Watched
from fedhpc.transport.spool.carrier_tasks import Tasks


def together(*works: Callable[[], object]) -> None:
    """All at once, each in a thread; raises the first failure."""
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


# --- the carrier


@pytest.fixture
def carrier(tmp_path: Path) -> Iterator[Carrier]:
    made = Carrier(spool_in(tmp_path), FakeClient(FakeRelay()), lambda text: None)  # type: ignore[arg-type]
    yield made
    made._end()


def ended(carrier: Carrier, key: tuple[str, str, str], *, well: bool = True) -> None:
    """A task with this key, from its begin to its end."""
    future = carrier._start(key, lambda: well, 0)
    assert future is not None
    future.result(PATIENCE_S)


def test_a_task_ends_while_the_carrier_looks_at_what_is_done(carrier: Carrier) -> None:
    """`Set changed size during iteration` ended a carrier; and a sum that is done stays done."""
    done = MeddledSet({("put", "old", ""), ("sum", "old", "")})
    carrier._done = done
    with Meddler(lambda: ended(carrier, ("sum", "new", ""))) as done.meddler:
        carrier._start_all()
    assert carrier._done == {("sum", "old", ""), ("sum", "new", "")}
    assert not carrier._under_way


def test_tasks_end_all_the_time(carrier: Carrier) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        carrier._done = {("sum", str(i), "before") for i in range(3000)}
        together(
            lambda: [ended(carrier, ("sum", str(i), "")) for i in range(500)],
            *[lambda: [carrier._start_all() for _ in range(100)]] * 2,
        )
    finally:
        sys.setswitchinterval(before)
    assert {("sum", str(i), "") for i in range(500)} <= carrier._done


def test_a_task_fails_while_the_carrier_forgets_old_failures(carrier: Carrier) -> None:
    now = time.monotonic()
    late = MeddledDict({("put", "old", ""): now - 1.0, ("put", "later", ""): now + 3600.0})
    carrier._not_before = late
    with Meddler(lambda: ended(carrier, ("put", "new", ""), well=False)) as late.meddler:
        carrier._start_all()
    assert set(carrier._not_before) == {("put", "later", ""), ("put", "new", "")}


def test_an_attempt_is_brought_while_others_are_given_up(carrier: Carrier, monkeypatch: pytest.MonkeyPatch) -> None:
    old, kept, new = Watched(1, 1, "a"), Watched(1, 2, "a"), Watched(1, 3, "a")
    began: list[Watched] = []
    asked = [kept, new]
    monkeypatch.setattr(carrier, "_keep_watching", began.append)
    monkeypatch.setattr(carrier._notes, "watched", lambda: asked)
    for watched in (old, kept):
        carrier._bring(watched, 0.0, lambda: True)
    listed = MeddledDict(carrier._listed)
    carrier._listed, carrier._watchers = listed, {(1, 1): "a", (1, 2): "a"}
    with Meddler(lambda: carrier._bring(new, 0.0, lambda: True)) as listed.meddler:
        carrier._start_watchers()
    assert began == [new], "the one that is watched already is not watched twice"
    assert set(carrier._watchers) == set(carrier._listed) == {(1, 2), (1, 3)}
    asked = [Watched(1, 3, "b")]
    carrier._start_watchers()
    assert began == [new, Watched(1, 3, "b")], "a site that starts again waits anew"


def test_what_was_carried_is_counted(tmp_path: Path) -> None:
    class Counting(Carrier):
        carried = MeddledNumber()  # type: ignore[assignment]

    made = Counting(spool_in(tmp_path), FakeClient(FakeRelay()), lambda text: None)  # type: ignore[arg-type]
    number: Any = Counting.__dict__["carried"]
    with Meddler(made._count) as number.meddler:
        made._count()
    assert made.carried == 2


def test_a_signal_stops_the_carrier_wherever_its_thread_is(tmp_path: Path) -> None:
    """A handler may run while its thread waits for `stopping` and holds that event's lock."""
    carrier = Carrier(spool_in(tmp_path), FakeClient(FakeRelay()), lambda text: None)  # type: ignore[arg-type]

    def interrupted() -> None:
        with carrier.stopping._cond:  # type: ignore[attr-defined]
            carrier.stop()

    together(interrupted)  # in a thread, since it would hang if a lock were taken
    together(carrier.watch)
    assert carrier.stopping.is_set()


def test_one_object_has_one_lock(tmp_path: Path) -> None:
    """Two tasks of one sum write one file: the second waits for the first."""
    tasks = Tasks(spool_in(tmp_path), FakeClient(FakeRelay()))  # type: ignore[arg-type]
    locks = MeddledDict()
    tasks._locks = locks
    others: list[threading.Lock] = []
    with Meddler(lambda: others.append(tasks._lock_of(name("Y")))) as locks.meddler:
        mine = tasks._lock_of(name("Y"))
    assert others == [mine]
    assert tasks._lock_of(name("Y", 2)) is not mine


def test_two_polls_of_one_attempt_are_shown_one_after_the_other(tmp_path: Path) -> None:
    """The site waits anew while the last poll is still under way: both answers come at once."""
    inside: list[int] = []
    most: list[int] = []

    class Client(FakeClient):
        def listing(self, *words: Any, **more: Any) -> tuple[list[Entry], str]:
            return [Entry(f"M1/{u}", SHA256.tree(b"x"), 1, None) for u in (1, 3)], "aa.2"

        def get(self, of: Any) -> bytes | None:
            inside.append(1)
            most.append(len(inside))
            other.come_in()
            inside.pop()
            return b"x"

    listed = ListedAttempt(spool_in(tmp_path), 1, 1)
    client: Any = Client(FakeRelay())
    with Meddler(lambda: listed.bring(client, 0.0, lambda: True)) as other:
        assert listed.bring(client, 0.0, lambda: True)
    assert max(most) == 1
    assert [found.name for found in listed.objects] == ["M1/1", "M1/3"]


# --- the relay


@pytest.mark.parametrize("look", [lambda relay: relay.status(), lambda relay: relay.settle()], ids=["status", "step"])
def test_a_site_is_heard_of_while_the_relay_looks_at_who_is_there(
    tmp_path: Path, look: Callable[[Relay], object]
) -> None:
    relay = Relay(tmp_path)
    relay.hear([1, 2])
    heard = relay.coordinator._federations[CONFIG].heard
    at = MeddledDict(heard._at)
    heard._at = at
    with Meddler(lambda: relay.hear([3])) as at.meddler:
        look(relay)
    assert set(relay.status()["seen_s"]) == {"1", "2", "3"}


def test_who_was_heard_of() -> None:
    heard = Heard({1: 0.0})
    assert [heard.note(1, 60.0), heard.note(1, 121.0), heard.note(2, 121.0)] == [False, True, True]
    assert heard.alive(181.0) == {1, 2}
    assert heard.alive(182.0) == frozenset()
    assert Heard(heard.times()).times() == {1: 121.0, 2: 121.0}


def test_a_federation_that_changes_keeps_who_was_heard_of(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.hear([1])
    relay.coordinator.update(Roster({CONFIG: federation(sites=5)}))
    assert "1" in relay.status()["seen_s"]


class Workers:
    """Takes the place of the relay's worker threads, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.working = Counter[str]()
        self.most = Counter[str]()
        self.meddler: Meddler | None = None
        workers = self

        class Worker:
            def __init__(self, settle: object, name: str, clock: object) -> None:
                self.name = name
                workers.working[name] += 1
                workers.most[name] = max(workers.most[name], workers.working[name])
                if workers.meddler is not None:
                    workers.meddler.come_in()

            def wake(self) -> None:
                pass

            def stop(self) -> None:
                workers.working[self.name] -= 1

        monkeypatch.setattr(coordinator, "_Worker", Worker)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Relay, Roster]:
    """A relay with two federations, and a roster with a third and without the first."""
    all_ = [federation(config=config) for config in (CONFIG, OTHER, "ef" * 32)]
    return Relay(tmp_path, *all_[:2]), Roster({f.config: f for f in all_[1:]})


def test_a_federation_comes_while_the_relay_starts(two: tuple[Relay, Roster], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has one worker."""
    workers, (relay, roster) = Workers(monkeypatch), two
    with Meddler(lambda: relay.coordinator.update(roster)) as workers.meddler:
        relay.coordinator.start()
    assert set(workers.most.values()) == {1}
    assert len(+workers.working) == 2


def test_a_federation_comes_while_the_relay_stops(two: tuple[Relay, Roster], monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is left, and none begins any more."""
    workers, (relay, roster) = Workers(monkeypatch), two
    relay.coordinator.start()
    meddled = MeddledDict(relay.coordinator._workers)
    relay.coordinator._workers = meddled
    with Meddler(lambda: relay.coordinator.update(roster)) as meddled.meddler:
        relay.coordinator.stop()
    assert max(workers.most.values()) == 1
    assert all(count <= 0 for count in workers.working.values())


def test_a_federation_is_not_asked_before_it_knows_what_the_store_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would say that a round that was over long ago is open."""
    relay = Relay(tmp_path)
    relay.put("7/0/READY/1", b"{}", checked=False)
    rounds = coordinator.FederationRounds
    load = rounds.load
    knows: list[bool] = []
    monkeypatch.setattr(rounds, "load", lambda self: (other.come_in(), load(self)))
    monkeypatch.setattr(rounds, "take_news", lambda self, now: knows.append(bool(self._news)))
    with Meddler(relay.status) as other:
        relay.coordinator.update(Roster({CONFIG: federation(sites=5)}))
    assert knows == [True]


def test_times_are_read_while_a_step_writes_them() -> None:
    """Two states of a federation share them for a moment, each with a lock of its own."""
    fields = Ready(bytes.fromhex(STATE), False, bytes.fromhex(LAYOUT), "train", bytes.fromhex(STATE), bytes(32), 8)
    times = PhaseTimes(lambda phase, seconds: None)

    def begin(number: int) -> None:
        times.look(Round(number, ready={1: (fields, 0.0)}), 2, float(number))

    for number in range(1, KEPT + 1):
        begin(number)
    meddled = MeddledDict(times._rounds)
    times._rounds = meddled
    with Meddler(lambda: begin(KEPT + 1)) as meddled.meddler:
        assert [found["sum"] for found in times.as_json(0.0)] == list(range(1, KEPT + 1))
    assert [found["sum"] for found in times.as_json(0.0)] == list(range(2, KEPT + 2))


def test_connections_come_while_the_relay_looks_at_them(tmp_path: Path) -> None:
    """Those that wait for a request are cut when it stops; when certificates end, the operator is shown."""
    authority = new_authority()
    server = RelayServer(*read_settings(relay_toml(tmp_path, issue_new(authority, "relay"), authority)))
    end = datetime.datetime.now(datetime.UTC)

    class Idle:
        hurried = 0

        def hurry(self) -> None:
            self.hurried += 1

    first, second = Idle(), Idle()
    idle, ends = MeddledSet({first}), MeddledDict({b"1": end})
    server._idle, server._ends = idle, ends

    def come() -> None:
        with server._waits(second):  # type: ignore[arg-type]
            pass

    with Meddler(come) as idle.meddler:
        server._hurry_idle()
    assert (first.hurried, second.hurried) == (1, 0)
    assert set(idle) == {first}
    with Meddler(lambda: server._remember(b"2", end)) as ends.meddler:
        assert server.certificate_ends() == {b"1": end}
    assert set(server.certificate_ends()) == {b"1", b"2"}
    server.stop()
    server.serve()


# --- the client


def test_answers_that_were_waited_for_are_counted() -> None:
    class Counting(RelayExchange):
        turns = MeddledNumber()  # type: ignore[assignment]

    client: Any = FakeClient(FakeRelay())
    exchange = Counting(client, bytes(32), 1)
    number: Any = Counting.__dict__["turns"]
    with Meddler(exchange.turn) as number.meddler:
        exchange.turn()
    assert exchange.turns == 2


def test_two_blocks_are_masked_at_once() -> None:
    """Each thread has tools of its own, also where both find that there is one pair left."""
    tools = _Tools(lambda: Codec(3, "bern"), (), bytes(32))
    with tools.one() as first:
        pass
    free = MeddledList(tools._free)
    tools._free = free
    others: list[object] = []

    def other() -> None:
        with tools.one() as theirs:
            others.append(theirs)
            ended.wait(PATIENCE_S)

    ended = threading.Event()
    with Meddler(other) as free.meddler:
        with tools.one() as mine:
            assert others == [first]
            assert mine is not first
        ended.set()


def test_failures_of_one_transfer_are_counted() -> None:
    class Counting(Clock):
        failures = MeddledNumber()  # type: ignore[assignment]

    clock, others = Counting(), list[int]()
    number: Any = Counting.__dict__["failures"]
    with Meddler(lambda: others.append(clock.failed())) as number.meddler:
        mine = clock.failed()
    assert sorted([mine, *others]) == [0, 1]
