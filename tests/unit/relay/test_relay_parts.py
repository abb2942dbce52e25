"""Parts of the relay's rounds: READY, the roster's tables, quotas, the worker threads."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_fakes import CONFIG, OTHER, Hand, Relay, all_ready, federation, ready

from fedhpc.cohort.settings import CohortSettings
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds import round_threads as coordinator
from fedhpc.relay.rounds.ready import largest_group, read_ready
from fedhpc.relay.settings import Roster, read_roster, read_settings
from fedhpc.relay.store.kept_attempt import KeptAttempt
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import canon
from fedhpc.wire.kinds import MAX_READY_BYTES, MAX_TENSORS
from fedhpc.wire.object_names import ObjectName

# --- READY


def test_ready_as_it_is_read() -> None:
    fields, tensors = read_ready(ready(everyone=1))
    assert (fields.everyone, fields.purpose, fields.nbytes, tensors) == (True, "train", 56, ((32, 5), (64, 3)))
    assert fields.base == fields.state == b"\x11" * 32
    other, _ = read_ready(ready(everyone=1, base="77" * 32))
    assert other.differs_from(fields, any_base=False)
    assert not other.differs_from(fields, any_base=True)
    assert read_ready(ready(tensors=[[32, 5], [64, 4]]))[0].differs_from(fields, any_base=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "11" * 31},
        {"layout": "AB" * 32},
        {"purpose": 7},
        {"purpose": "x" * 5000},
        {"everyone": 2},
        {"tensors": []},
        {"tensors": [[32, 0]]},
        {"tensors": [[33, 1]]},
        {"tensors": [[8, 1]]},
        {"tensors": [[16, 1]]},
        {"tensors": [[32]]},
        {"tensors": [[64, (1 << 53) - 1]]},
        {"tensors": [[32, 1]] * (MAX_TENSORS + 1)},
        {"more": 1},
    ],
)
def test_ready_of_another_form(changes: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="READY"):
        read_ready(ready(**changes))


@given(st.binary(max_size=300) | st.recursive(st.integers() | st.text("ab"), st.lists).map(str).map(str.encode))
def test_no_bytes_are_more_than_a_refusal(data: bytes) -> None:
    with pytest.raises(PolicyError, match="READY"):
        read_ready(data)


def test_little_is_held_of_a_long_ready() -> None:
    data = ready(tensors=[[32, 1]] * (MAX_TENSORS // 4))
    tracemalloc.start()
    held = [read_ready(data)[0] for _ in range(3)]
    assert tracemalloc.get_traced_memory()[0] < 1 << 19  # three times the tensors would be 4 MB
    assert held[0] == held[2]
    tracemalloc.stop()
    with pytest.raises(PolicyError, match="at most"):
        read_ready(b" " * (MAX_READY_BYTES + 1))


@given(st.dictionaries(st.integers(1, 9), st.sampled_from("abc"), min_size=1), st.booleans())
def test_the_largest_group(purposes: dict[int, str], any_base: bool) -> None:
    fields = {u: read_ready(ready(purpose=p))[0] for u, p in purposes.items()}
    found = largest_group(fields, any_base=any_base)
    assert found is not None
    chosen, members = found
    groups = [frozenset(u for u, p in purposes.items() if p == purpose) for purpose in "abc"]
    assert members == max(filter(None, groups), key=lambda g: (len(g), -min(g)))
    assert all(purposes[u] == chosen.purpose for u in members)


# --- relay.toml and the roster file


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_relay_toml_of_an_earlier_version_is_told_what_to_remove(tmp_path: Path, value: str) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(f'[relay]\nlisten = "127.0.0.1:0"\nrounds = {value}\n')
    with pytest.raises(ConfigError, match="'rounds' is no longer a key") as refused:
        read_settings(path)
    assert refused.value.hint == "remove the line: every relay runs rounds"


def roster(tmp_path: Path, text: str, sites: int = 4) -> Roster:
    pins = ", ".join(f'{u} = "{u:064x}"' for u in range(1, sites + 1))
    path = tmp_path / "roster.toml"
    path.write_text(f'["{CONFIG}"]\nsites = {{ {pins} }}\n{text}')
    return read_roster(path)


@pytest.mark.parametrize(("sites", "threshold"), [(1, 1), (2, 2), (3, 3), (4, 3), (10, 7), (100, 67)])
def test_the_threshold_is_that_of_a_federation_that_sets_none(tmp_path: Path, sites: int, threshold: int) -> None:
    found = roster(tmp_path, "", sites).federations[CONFIG]
    assert (found.threshold, found.numbers, found.cohort) == (threshold, sites, CohortSettings())


def test_threshold_and_cohort_of_the_roster(tmp_path: Path) -> None:
    text = f'threshold = 4\n["{CONFIG}".cohort]\npolicy = "buffered"\nstaleness = 3\n'
    found = roster(tmp_path, text).federations[CONFIG]
    assert found.threshold == 4
    assert found.cohort == CohortSettings(policy="buffered", staleness=3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("threshold = 5\n", "threshold = 5 of 4 sites"),
        ("threshold = 0\n", "threshold = 0"),
        (f'["{CONFIG}".cohort]\npolicy = "all"\n', "policy"),
        (f'["{CONFIG}".cohort]\nsites = 3\n', "unknown key 'sites'"),
        (f'["{CONFIG}".cohort]\nstaleness = 3\n', "staleness"),
    ],
)
def test_a_roster_that_cannot_be_used(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        roster(tmp_path, text)


def test_a_revoked_site_still_counts_for_the_threshold(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(f'["{CONFIG}"]\nsites = {{ 1 = "{1:064x}", 2 = "{2:064x}", 5 = "{5:064x}" }}\n')
    found = read_roster(path).federations[CONFIG]
    assert (found.numbers, found.threshold) == (5, 4)


def test_an_empty_roster(tmp_path: Path) -> None:
    (tmp_path / "roster.toml").write_text("")
    assert read_roster(tmp_path / "roster.toml").federations == {}


# --- federations come and change


def test_a_change_of_the_roster_keeps_what_is_there(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    relay.hear([1])
    all_ready(relay, 1, 2, 3)
    changed, new = federation(4, policy="buffered"), federation(3, OTHER)
    relay.coordinator.update(Roster({CONFIG: changed, OTHER: new}))
    assert list(relay.status()["seen_s"]) == ["1"]
    relay.settle()
    assert len(relay.get("1/1/M0")["cohort"]) == 3
    Hand(relay).send("M1", 1, 2)
    relay.now += 100
    before = relay.only_round()["since_s"]
    relay.coordinator.update(Roster({CONFIG: changed, OTHER: new}))  # nothing changed: deadlines go on
    assert relay.only_round()["since_s"] == before == 100
    relay.coordinator.update(Roster({OTHER: new}))
    with pytest.raises(Problem, match="left the roster"):
        relay.status()
    assert relay.status(OTHER)["sites"] == 3


# --- quotas


def test_what_the_relay_writes_is_not_the_sites_quota(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(3))
    quota = relay.federations[0].quota
    KeptAttempt(relay.store, (CONFIG, 9, 9), SHA256).put("Y", bytes(2 << 20))
    small = type(quota)(3 << 20, 30, 3)
    for u in (1, 2, 3):
        relay.store.begin(ObjectName(CONFIG, 1, 1, f"M3v/{u}"), 1 << 20, small, SHA256)
    with pytest.raises(Problem, match="quota"):
        relay.store.begin(ObjectName(CONFIG, 1, 1, "M1/1"), 1, small, SHA256)


# --- threads


def test_workers_survive_a_failed_step_and_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(coordinator, "AGAIN_S", 0.01)
    relay = Relay(tmp_path, federation(3), federation(3, OTHER))
    for config in (CONFIG, OTHER):
        for u in (1, 2, 3):
            relay.put(f"1/0/READY/{u}", ready(), config)
    there = {config: threading.Event() for config in (CONFIG, OTHER)}
    relay.store.on_object.append(lambda s: there[s.name.config].set() if s.name.name == "A1" else None)
    failures, other_went_on = [0], threading.Event()
    real = KeptAttempt.put

    def put(self: KeptAttempt, name: str, data: bytes) -> None:
        if self._attempt[0] == CONFIG and failures[0] < 2:
            failures[0] += 1
            assert there[OTHER].wait(20), "the other federation waits for this one"
            other_went_on.set()
            raise OSError("a broken disk")
        real(self, name, data)

    monkeypatch.setattr(KeptAttempt, "put", put)
    relay.coordinator.start()
    try:
        assert there[CONFIG].wait(20)
        assert other_went_on.is_set()
        assert failures == [2]
        assert caplog.text.count("a step failed") == 2
    finally:
        relay.coordinator.stop()
    assert canon({}) == relay.raw("1/0/A1")
