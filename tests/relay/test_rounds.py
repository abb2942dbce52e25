"""Rounds on a running relay: real TLS, real long polls, a relay that is killed, a roster that changes."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from relay_process import CONFIG, MIB, OTHER_CONFIG, Relay, World, noise, root, until
from round_sites import STATE, Sites

from fedhpc.errors import FedhpcError
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.wire.object_names import ObjectName


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    """Starts relays that run rounds; `cohort`: lines of the [cohort] table."""
    made: list[Relay] = []

    def make(cohort: str = "", roster: str | None = None) -> Relay:
        folder = tmp_path / f"relay{len(made)}"
        folder.mkdir()
        text = world.roster() if roster is None else roster
        made.append(Relay(world, folder, roster=f'{text}\n["{CONFIG}".cohort]\n{cohort}\n' if text else ""))
        if not text:
            (folder / "roster.toml").write_text("")
        return made[-1].start()

    yield make
    for relay in made:
        if relay.process is not None and relay.process.poll() is None:
            relay.stop()


def kind_of(call: Callable[[], object]) -> str:
    with pytest.raises(RelayProblem) as refused:
        call()
    return refused.value.kind


def test_a_round_with_long_polls_in_lobby_and_attempt(start: Callable[..., Relay]) -> None:
    relay = start()
    sites = Sites(relay, lanes=16 * MIB // 4 + 5)
    found: dict[str, list[str]] = {}

    def poll(attempt: int, cursor: str = "") -> None:
        entries, _ = relay.client(2).listing(CONFIG, 1, attempt, cursor, 20.0)
        found[f"{attempt}"] = [entry.name for entry in entries]

    sites.ready(1, 2, 3)
    entries, cursor = relay.client(2).listing(CONFIG, 1, 0)
    assert [entry.name for entry in entries] == ["READY/1", "READY/2", "READY/3"]
    polls = [threading.Thread(target=poll, args=a) for a in ((1,), (0, cursor))]
    for thread in polls:
        thread.start()
    standing = sites.standing()
    assert (standing["sites"], standing["threshold"], standing["done"]) == (4, 3, 0)
    assert (
        standing["sums"][0].items()
        >= {
            "sum": 1,
            "attempt": 0,
            "phase": "ready",
            "ready": [1, 2, 3],
            "cohort": [],
            "late": [4],
            "bytes": 16 * MIB + 20,
            "purpose": "train",
        }.items()
    )
    assert {"1", "2", "3"} <= set(standing["seen_s"])
    assert "4" not in standing["seen_s"]
    sites.ready(4)
    for thread in polls:
        thread.join(25)
    assert found["1"] == ["M0"]
    assert found["0"][0] == "READY/4"
    assert json.loads(sites.get(0, "A1")) == {}
    assert json.loads(sites.get(1, "M0"))["cohort"] == [[u, STATE.hex()] for u in (1, 2, 3, 4)]
    sites.agree(1, sites.numbers)
    assert sites.standing()["sums"][0]["phase"] == "masked"
    vectors = {u: noise(16 * MIB + 20, u) for u in sites.numbers}
    sites.upload(1, sites.numbers, vectors)
    sites.get(1, "M4r")
    expected = sum(np.frombuffer(v, "<u4") for v in vectors.values()).astype("<u4").tobytes()
    y = bytearray(len(expected))
    relay.client(3).get_into(sites.name(1, "Y"), memoryview(y))
    assert y == expected
    assert json.loads(sites.get(1, "M4r")) == {"sum": root(expected), "u3": [1, 2, 3, 4]}
    sites.finish(1, sites.numbers)
    assert json.loads(sites.get(0, "DONE")) == {"attempt": 1, "u3": [1, 2, 3, 4]}
    until(lambda: sites.standing()["done"] == 1)
    assert sites.standing()["sums"] == []
    folder = relay.folder / "store" / CONFIG / "1" / "1"
    until(lambda: not list(folder.glob("M3v*")))
    assert 'fedhpc_relay_sums_done_total{federation="' in relay.metrics()


def test_lost_sites_deadlines_and_what_comes_too_late(start: Callable[..., Relay]) -> None:
    relay = start('policy = "buffered"\nanswer_s = 1.5\nupload_s = 2.0')
    sites = Sites(relay)
    sites.ready(1, 2, 3)
    sites.agree(1, [1, 2, 3])
    vectors = {u: noise(80, u) for u in sites.numbers}
    sites.upload(1, [1, 2], vectors)
    assert "not 3" in json.loads(sites.get(1, "NEXT"))["why"]
    assert kind_of(lambda: relay.client(3).put(sites.name(1, "M3v/3"), vectors[3])) == "too-late"
    sites.get(0, "A2")
    sites.ready(4)  # comes while attempt 2 runs
    sites.play(2, [1, 2, 3])
    assert json.loads(sites.get(0, "DONE")) == {"attempt": 2, "u3": [1, 2, 3]}
    for path, words in (("2/M1/4", "not in the cohort"), ("9/M1/4", "was not proposed"), ("0/M1/4", "lobby")):
        request = f"PUT /v1/objects/{CONFIG}/1/{path} HTTP/1.1\nhost: r\ncontent-length: 2"
        status, text = relay.ask(request, b"{}", "site4")
        assert (status, words in text) == (403, True), text
    assert kind_of(lambda: relay.client(1).put(sites.name(2, "M1/1"), b"x" * 2000)) == "too-large"


def test_rounds_that_are_over_say_so_to_who_waits_there(start: Callable[..., Relay]) -> None:
    relay = start('policy = "buffered"')
    for number in (1, 2, 3):
        sites = Sites(relay, number)
        sites.ready(1, 2, 3)
        sites.play(1, [1, 2, 3])
    until(lambda: sites.standing()["done"] == 3)
    late = relay.client(4)
    first = Sites(relay, 1)
    for call in (
        lambda: first.ready(4),
        lambda: late.listing(CONFIG, 1, 0, "", 5.0),
        lambda: late.listing(CONFIG, 1, 1, "", 5.0),
        lambda: late.get(first.name(1, "Y"), 5.0),
    ):
        assert kind_of(call) == "round-over"
    assert [e.name for e in late.listing(CONFIG, 2, 0)[0]][-1] == "DONE"
    assert late.get(ObjectName(CONFIG, 0, 0, "CONFIG/1")) is None
    need = ObjectName(CONFIG, 0, 123, "NEED/4")
    late.put(need, b"{}")
    until(lambda: sites.standing()["needs"] == [{"site": 4, "attempt": 123, "asked": 1}])
    relay.client(1).put(ObjectName(CONFIG, 0, 123, "STATE/1/4"), b"{}")
    Sites(relay, 4).ready(4)
    until(lambda: sites.standing()["needs"] == [])
    assert late.get(need) is None


@pytest.mark.parametrize("moment", ["ready", "masked", "done"])
def test_a_killed_relay_goes_on_with_the_round(start: Callable[..., Relay], moment: str) -> None:
    relay = start()
    sites = Sites(relay)

    def kill() -> None:
        relay.stop(signal.SIGKILL)
        relay.start()

    sites.ready()
    if moment == "ready":
        kill()
    sites.agree(1, sites.numbers)
    vectors = {u: noise(80, u) for u in sites.numbers}
    sites.upload(1, [1, 2, 3], vectors)
    if moment == "masked":
        kill()
    m2 = sites.machines[4]
    assert sites.standing()["sums"][0]["late"] == [4]
    m2.receive_shares(sites.read(1, "M2", sites.numbers))
    sites.upload(1, [4], vectors)
    sites.finish(1, sites.numbers)
    if moment == "done":
        kill()
    assert json.loads(sites.get(0, "DONE"))["u3"] == [1, 2, 3, 4]
    until(lambda: sites.standing()["done"] == 1)


def test_federations_come_change_and_go_with_the_roster_file(start: Callable[..., Relay]) -> None:
    relay = start(roster="")
    client = relay.client(1)
    roster = relay.folder / "roster.toml"

    def standing() -> dict[str, object]:
        try:
            return client.get_json(f"/v1/federations/{CONFIG}")
        except FedhpcError:
            return {}

    def replace(text: str) -> None:
        fresh = relay.folder / "fresh"
        fresh.write_text(text)
        fresh.rename(roster)

    assert standing() == {}
    replace(relay.world.roster())
    until(lambda: standing().get("threshold") == 3)
    sites = Sites(relay)
    sites.ready(1, 2, 3)
    replace(relay.world.roster() + f'["{CONFIG}".cohort]\npolicy = "buffered"\n')
    sites.get(0, "A1")  # what was ready before the change counts
    replace(relay.world.roster() + "damaged")
    until(lambda: "the old one stays" in relay.log_text())
    assert standing()["sites"] == 4
    replace(relay.world.roster(without=1))
    until(lambda: standing() == {})
    assert sites.standing(2)["sites"] == 3


def test_who_may_see_where_a_federation_stands(start: Callable[..., Relay]) -> None:
    relay = start()
    request = f"GET /v1/federations/{CONFIG} HTTP/1.1\nhost: r"
    assert relay.ask(request)[0] == 200
    assert relay.ask(request, who="outsider")[0] == 403
    assert relay.ask(request, who="stranger")[0] == 403
    assert relay.ask(request, who="")[0] == 401
    assert relay.ask(request.replace(CONFIG, OTHER_CONFIG))[0] == 403
    assert relay.ask(request.replace(CONFIG, OTHER_CONFIG), who="outsider")[0] == 200
    assert relay.ask(request.replace("GET", "PUT"))[0] == 405
    assert relay.ask(request.replace(CONFIG, CONFIG[:-1]))[0] == 403


def test_adding_vectors_takes_little_memory_and_holds_up_nobody(start: Callable[..., Relay]) -> None:
    relay = start()
    size = 96 * MIB  # a relay of 50 MiB that held one vector would have more
    sites = Sites(relay, lanes=size // 4)
    sites.ready()
    sites.agree(1, sites.numbers)
    vector = noise(size)
    sites.upload(1, sites.numbers, dict.fromkeys(sites.numbers, vector))
    other = json.loads(
        relay.ask(f"GET /v1/federations/{OTHER_CONFIG} HTTP/1.1\nhost: r", who="outsider")[1].split("\r\n\r\n")[1]
    )
    assert other["sums"] == []
    sites.get(1, "M4r")
    assert relay.peak_bytes() < size
    y = bytearray(size)
    relay.client(1).get_into(sites.name(1, "Y"), memoryview(y))
    assert y == (np.frombuffer(vector, "<u4") * np.uint32(4)).tobytes()
    print(f"peak {relay.peak_bytes() / MIB:.0f} MiB")
