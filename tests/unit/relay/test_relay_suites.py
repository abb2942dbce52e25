"""A relay hashes what arrives by the suite of its federation: through a kill, after a restart, and in an audit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from relay_fakes import CONFIG, OTHER, Hand, Relay, all_ready, federation, ready

from fedhpc.relay.settings import Roster
from fedhpc.relay.store.object_store import Quota, Store
from fedhpc.relay.store.upload import read_head
from fedhpc.secure.suite import SHA256, Suite, suite_named
from fedhpc.wire.object_names import ObjectName

BLAKE3 = suite_named("blake3")
SUITES = pytest.mark.parametrize("suite", [SHA256, BLAKE3], ids=lambda suite: suite.name)
MIB = 1 << 20
QUOTA = Quota(1 << 30, 1000, 4)
LANES = 5 * MIB // 8  # of 32 bits: two blocks and a half
VECTORS = {u: np.random.default_rng(u).bytes(4 * LANES) for u in (1, 2, 3, 4)}
SITES = (1, 2, 3, 4)


def waiting(tmp_path: Path, suite: Suite) -> tuple[Relay, Hand]:
    """A relay whose attempt waits for vectors of three blocks."""
    relay = Relay(tmp_path, federation(4, suite=suite))
    for u in SITES:
        relay.put(f"1/0/READY/{u}", ready(tensors=[[32, LANES]]))
    relay.settle()
    hand = Hand(relay)
    hand.play(*SITES, upto="M2")
    return relay, hand


def brings(relay: Relay, hand: Hand, u: int, blocks: tuple[int, ...]) -> None:
    """A PUT of some blocks, which the relay adds while they arrive; then M3, if that was all."""
    name, data = ObjectName(CONFIG, 1, 1, f"M3v/{u}"), VECTORS[u]
    upload = relay.begin(name, len(data))
    upload.declare_tree(relay.suite().tree(data))
    sum_ = relay.coordinator.arriving(name)
    assert sum_ is not None
    for index in blocks:
        block = memoryview(data)[index * MIB : (index + 1) * MIB]
        if upload.write_block(index, block):
            sum_.add(u, upload, index, block)
    if relay.store.finish(upload):
        relay.put(f"1/1/M3/{u}", hand.message("M3", u, vector=relay.suite().tree(data).hex()))


def lanes(*sites: int) -> bytes:
    return np.sum([np.frombuffer(VECTORS[u], "<u4") for u in sites], axis=0, dtype=np.uint32).tobytes()


@SUITES
def test_a_vector_that_was_cut_by_a_kill_goes_on_and_is_summed(tmp_path: Path, suite: Suite) -> None:
    relay, hand = waiting(tmp_path, suite)
    brings(relay, hand, 1, (0, 1, 2))
    brings(relay, hand, 2, (2, 0))
    relay.restart()
    relay.settle()
    partial = relay.store.upload(ObjectName(CONFIG, 1, 1, "M3v/2"))
    assert partial is not None
    assert partial.missing() == [(MIB, 2 * MIB)], "what was recorded is believed"
    for u in (2, 3, 4):
        brings(relay, hand, u, (0, 1, 2))
    relay.settle()
    assert relay.get("1/1/M4r") == {"sum": suite.tree(lanes(*SITES)).hex(), "u3": list(SITES)}
    assert relay.raw("1/1/Y") == lanes(*SITES)
    machine = hand.machine()
    assert machine.other_vectors() == ()
    assert (machine.audit().bad, machine.audit().differs) == ((), False)
    relay.restart()
    relay.settle()
    assert hand.machine().audit().bad == ()


@pytest.mark.parametrize(("suite", "other"), [(SHA256, BLAKE3), (BLAKE3, SHA256)], ids=["sha256", "blake3"])
def test_a_vector_that_is_signed_by_its_tree_of_another_suite_is_absent(
    tmp_path: Path, suite: Suite, other: Suite
) -> None:
    relay, hand = waiting(tmp_path, suite)
    for u in (1, 3, 4):
        brings(relay, hand, u, (0, 1, 2))
    upload = relay.begin(ObjectName(CONFIG, 1, 1, "M3v/2"), len(VECTORS[2]))
    upload.declare_tree(other.tree(VECTORS[2]))
    for index in range(3):
        upload.write_block(index, memoryview(VECTORS[2])[index * MIB : (index + 1) * MIB])
    assert relay.store.finish(upload)
    relay.put("1/1/M3/2", hand.message("M3", 2, vector=other.tree(VECTORS[2]).hex()))
    relay.settle()
    assert relay.get("1/1/M4r") == {"sum": suite.tree(lanes(1, 3, 4)).hex(), "u3": [1, 3, 4]}
    assert relay.raw("1/1/Y") == lanes(1, 3, 4)
    relay.settle()
    assert relay.status()["bad_vectors"] == [{"sum": 1, "attempt": 1, "site": 2}]


def test_federations_of_both_suites_at_one_relay(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4, suite=BLAKE3), federation(4, OTHER))
    for config, suite in ((CONFIG, BLAKE3), (OTHER, SHA256)):
        all_ready(relay, *SITES, config=config)
        hand = Hand(relay, config=config)
        hand.play(*SITES, upto="M3")
        assert relay.get("1/1/M4r", config) == {"sum": suite.tree(hand.sum_over(*SITES)).hex(), "u3": list(SITES)}


@SUITES
def test_a_damaged_block_is_found_after_a_restart(tmp_path: Path, suite: Suite) -> None:
    store, what = Store(tmp_path), ObjectName(CONFIG, 1, 1, "M3v/1")
    upload = store.begin(what, 3 * MIB, QUOTA, suite)
    for index in range(2):
        upload.write_block(index, memoryview(os.urandom(MIB)))
    store.close()
    with (tmp_path / CONFIG / "1" / "1" / "M3v.1.part").open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(4096))
    store = Store(tmp_path)
    found = store.upload(what)
    assert found is not None
    assert (found.suite, found.missing()) == (suite, [(MIB, 3 * MIB)])
    store.close()


def test_a_repeat_of_a_whole_object_is_compared_by_its_suite(tmp_path: Path) -> None:
    store, what, data = Store(tmp_path), ObjectName(CONFIG, 1, 1, "M3v/1"), os.urandom(2 * MIB)
    for news in (True, False):
        upload = store.begin(what, len(data), QUOTA, BLAKE3)
        upload.declare_tree(BLAKE3.tree(data))
        for index in range(2):
            assert upload.write_block(index, memoryview(data)[index * MIB : (index + 1) * MIB]) is news
        assert store.finish(upload)
    store.close()
    store = Store(tmp_path)
    found = store.find(what)
    assert found is not None
    assert found.found == BLAKE3.tree(data)
    store.close()


def test_what_a_roster_with_another_suite_left_is_begun_anew(tmp_path: Path) -> None:
    """The operator has corrected `suite` in the roster: half an object hashed by the old one is of no use."""
    store, what, data = Store(tmp_path), ObjectName(CONFIG, 1, 1, "M3v/1"), os.urandom(2 * MIB)
    store.begin(what, len(data), QUOTA, SHA256).write_block(0, memoryview(data)[:MIB])
    upload = store.begin(what, len(data), QUOTA, BLAKE3)
    assert upload.missing() == [(0, len(data))]
    assert store.totals()[CONFIG][1] == {"bytes": len(data), "objects": 1, "uploads": 1}
    upload.declare_tree(BLAKE3.tree(data))
    for index in range(2):
        upload.write_block(index, memoryview(data)[index * MIB : (index + 1) * MIB])
    assert store.finish(upload)
    store.close()


@pytest.mark.parametrize("name", [b"md5\0\0\0\0\0", b"\xff" * 8, b"\0" * 8])
def test_records_of_an_unknown_suite_are_removed(tmp_path: Path, name: bytes) -> None:
    store, what = Store(tmp_path), ObjectName(CONFIG, 1, 1, "M3v/1")
    store.begin(what, 3 * MIB, QUOTA, BLAKE3).write_block(0, memoryview(bytes(MIB)))
    store.close()
    meta = tmp_path / CONFIG / "1" / "1" / "M3v.1.meta"
    assert read_head(meta).suite == BLAKE3
    data = meta.read_bytes()
    meta.write_bytes(data.replace(b"blake3\0\0", name))
    store = Store(tmp_path)
    assert store.upload(what) is None
    assert not meta.exists()
    store.close()


def test_another_suite_in_the_roster_makes_the_rounds_anew(tmp_path: Path) -> None:
    relay = Relay(tmp_path, federation(4))
    all_ready(relay, *SITES)
    before = Hand(relay).machine()
    relay.federations = (replace(relay.federations[0], suite=BLAKE3),)
    relay.coordinator.update(Roster({CONFIG: relay.federations[0]}))
    relay.settle()
    hand = Hand(relay)
    assert hand.machine() is not before
    hand.play(*SITES, upto="M3")
    assert relay.get("1/1/M4r")["sum"] == BLAKE3.tree(hand.sum_over(*SITES)).hex()
    for name in ("M4", "M5", "M6"):
        hand.send(name, *SITES)
        relay.settle()
    assert relay.get("1/0/DONE") == {"attempt": 1, "u3": list(SITES)}
