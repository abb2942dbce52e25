"""How long the phases took, by a clock turned by hand; and the metrics, read with Prometheus' own parser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from relay_fakes import CONFIG, Hand, Relay, all_ready, federation
from status_fakes import EMPTY, snapshot

from fedhpc.relay.metrics import _HELP, PREFIX, Metrics
from fedhpc.relay.rounds.one_round import Round
from fedhpc.relay.rounds.phase_times import KEPT, PhaseTimes
from fedhpc.relay.rounds.ready import Ready
from fedhpc.relay.status.snapshot import gauges
from fedhpc.wire.kinds import PHASES


def times(relay: Relay) -> list[dict[str, Any]]:
    return list(relay.status()["times"])


def go(relay: Relay, hand: Hand, name: str, seconds: float) -> None:
    """All sites send one kind of message, `seconds` after the relay began to wait for it."""
    relay.settle()
    relay.now += seconds
    if name == "M3":
        hand.vectors(1, 2, 3, 4)
    else:
        hand.send(name, 1, 2, 3, 4)
    relay.settle()


def test_each_phase_has_its_seconds(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1)
    relay.later(30.0)
    all_ready(relay, 2, 3, 4)
    hand = Hand(relay)
    for name, seconds in (("M1", 1.0), ("M2", 2.0), ("M3", 4.0)):
        go(relay, hand, name, seconds)
    hand.send("M4", 1, 2, 3, 4)
    go(relay, hand, "M5", 8.0)
    (open_round,) = times(relay)
    assert (open_round["done"], open_round["ended_s"], open_round["sites"]) == (False, None, [])
    go(relay, hand, "M6", 16.0)
    relay.now += 100.0
    assert times(relay) == [
        {
            "sum": 1,
            "purpose": "train",
            "attempts": 1,
            "done": True,
            "ended_s": 100.0,
            "sites": [1, 2, 3, 4],
            "seconds": dict(zip(PHASES, (30.0, 1.0, 2.0, 4.0, 0.0, 8.0, 16.0), strict=True)),
            "why": "",
        }
    ]
    told = relay.coordinator._metrics.text({})
    assert f'phase_duration_seconds_sum{{federation="{CONFIG[:16]}",phase="results"}} 16\n' in told


def test_the_sum_is_a_phase_of_its_own(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    hand = Hand(relay)
    go(relay, hand, "M1", 0.0)
    go(relay, hand, "M2", 0.0)
    hand.vectors(1, 2, 3, 4)
    rounds = relay.coordinator._federations[CONFIG]
    step = rounds.step(relay.now)
    assert step.job is not None
    relay.now += 7.0  # as long as the vectors are added
    assert relay.only_round()["phase"] == "sum"
    step.job.then(step.job.run())
    relay.settle()
    assert times(relay)[0]["seconds"]["sum"] == 7.0


def test_an_attempt_that_failed_counts_and_says_why(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    Hand(relay).send("M1", 1, 2)
    relay.later(120.0, alive=[1, 2])  # answer_s
    (found,) = times(relay)
    assert found["why"] == "keys: 2 of 4 sites in time, not 3, 4"
    assert found["seconds"] == {"ready": 0.0, "keys": 120.0}
    relay.now += 5.0
    all_ready(relay, 1, 2, 3, 4)
    relay.later(5.0, alive=[1, 2, 3, 4])
    (found,) = times(relay)
    assert (found["attempts"], found["seconds"]) == (2, {"ready": 10.0, "keys": 120.0})


def test_ready_lasts_from_the_first_site_on(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.later(500.0)
    all_ready(relay, 2)
    relay.now += 20.0
    assert relay.only_round()["since_s"] == 20.0
    assert relay.only_round()["limit_s"] is None


def test_a_restart_forgets_rounds_that_were_done_and_a_new_roster_does_not(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    all_ready(relay, 1, 2, 3, 4)
    Hand(relay).play(1, 2, 3, 4)
    all_ready(relay, 1, round_=2)
    relay.federations = (federation(policy="quorum"),)
    from fedhpc.relay.settings import Roster

    relay.coordinator.update(Roster({f.config: f for f in relay.federations}))
    relay.settle()
    assert [t["sum"] for t in times(relay)] == [1, 2]
    relay.restart()
    relay.settle()
    assert [(t["sum"], t["done"]) for t in times(relay)] == [(2, False)]


def test_only_the_last_rounds_are_kept() -> None:
    told: list[tuple[str, float]] = []
    phases = PhaseTimes(lambda phase, seconds: told.append((phase, seconds)))
    fields = Ready(bytes(32), False, bytes(32), "train", bytes(32), bytes(32), 8)
    for number in range(1, KEPT + 4):
        round_ = Round(number, {1: (fields, 0.0)})
        phases.look(round_, 3, 10.0 * number)
        round_.done = True
        phases.look(round_, 3, 10.0 * number + 1)
        phases.look(round_, 3, 10.0 * number + 2)
    assert [t["sum"] for t in phases.as_json(0.0)] == list(range(4, KEPT + 4))
    assert [t["sum"] for t in phases.as_json(0.0, 2)] == [KEPT + 2, KEPT + 3]
    assert told == [("ready", 1.0)] * (KEPT + 3)


# --- metrics


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_metrics_are_what_prometheus_reads() -> None:
    metrics = Metrics()
    label = 'federation="abababababababab"'
    metrics.begin_federation(label)
    metrics.count_request("GET", 200, 0.5)
    metrics.count_request("EVIL\n", 404, 0.5)
    for seconds in (0.01, 0.05, 3.0, 1e9):
        metrics.observe_phase(label, "keys", seconds)
    found = snapshot(sums__0__since_s=61.0)
    text = metrics.text(gauges(found))
    assert text.endswith("\n")
    read = families(text)
    assert {name.removesuffix("_total") for name in _HELP} == {name.removeprefix(PREFIX) for name in read}
    for family in read.values():
        assert family.documentation
        assert family.type == {"phase_duration_seconds": "histogram"}.get(
            family.name.removeprefix(PREFIX), "counter" if f"{family.name}_total" in text else "gauge"
        )
        assert not re.search(r"milli|micro|kilo|_ms|_mb|percent", family.name)
    values = {
        (s.name.removeprefix(PREFIX), *sorted(s.labels.items())): s.value for f in read.values() for s in f.samples
    }
    mine = ("federation", "ab" * 8)
    assert values["bad_vectors_total", mine] == 0
    assert values["requests_total", ("method", "other"), ("status", "404")] == 1
    assert values["build_info", ("version", "1.2")] == 1
    assert values["late_sites", mine] == 1
    assert values["phase_age_seconds", mine, ("phase", "masked")] == 61
    assert values["last_sum_done", mine] == 7
    assert values["site_last_heard_seconds", mine, ("site", "4")] == 0.3
    assert values["stored_bytes", mine, ("owner", "2")] == 10**6
    assert values["stored_bytes", mine, ("owner", "relay")] == 10**6
    assert values["quota_bytes", mine] == 4 * 10**9
    assert values["roster_readable",] == 1
    assert values["certificate_end_timestamp_seconds", ("number", "0"), ("role", "relay")] == 1893456000


def test_the_histogram_counts_what_lasted_at_most_so_long() -> None:
    metrics = Metrics()
    for seconds in (0.01, 0.05, 3.0, 1e9):
        metrics.observe_phase('federation="ab"', "keys", seconds)
    (family,) = [f for name, f in families(metrics.text({})).items() if name.endswith("phase_duration_seconds")]
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert {edge: buckets[edge] for edge in ("0.05", "0.2", "1", "5", "86400", "+Inf")} == {
        "0.05": 2,
        "0.2": 2,
        "1": 2,
        "5": 3,
        "86400": 3,
        "+Inf": 4,
    }
    rest = {s.name.removeprefix(PREFIX): s.value for s in family.samples if not s.name.endswith("_bucket")}
    assert rest == {"phase_duration_seconds_sum": pytest.approx(1e9 + 3.06), "phase_duration_seconds_count": 4}


def test_a_relay_without_federations_has_metrics() -> None:
    read = families(Metrics().text(gauges(EMPTY)))
    assert read[f"{PREFIX}received_bytes"].samples[0].value == 0
    assert f"{PREFIX}stored_bytes" not in read
