"""Attacks over the wire: a relay with the real key that lies, a real site that breaks the rules, and what stops them.

Each is stopped by the named error before the message of its row leaves a victim; what had been released by then is
looked up in the relay's store. The rows are in attack_table.py.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from attack_table import ATTACKS, OTHERS, Attack
from hostile_relay import ROUND
from relayed_peel import attempt_file, encoded, layout_of, without_edges, without_self
from relayed_site import BOUND, floats
from relayed_world import QUORUM, SYNC, TRAINING, World, check_ledgers, check_sums
from theatre import Theatre

from fedhpc.relay.certificates import issue_new, new_authority

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

ORDER = ("READY", "M1", "M2", "M3", "M4", "M5", "M6")
WAIT_S = 60.0


def make(attack: Attack, theatre: Theatre, name: str) -> None:
    """The attack, and what its row says of it."""
    with theatre.world(TRAINING if attack.job == "rounds" else QUORUM, name) as world:
        world.start_relay(attack.name, body="hostile_relay" if attack.name else "relayed_relay")
        crime = {"FEDHPC_TEST_CRIME": attack.crime}
        sites = {u: world.start_site(u, attack.job, **(crime if u in attack.criminals else {})) for u in world.numbers}
        for u in attack.victims:
            assert sites[u].wait(WAIT_S) == attack.exit_code, world.texts()
            assert f"error: {attack.error}: " in sites[u].text(), world.texts()
            assert attack.words in sites[u].text(), world.texts()
            assert "two" not in world.sums(u)
        for child in sites.values():
            child.kill()
        released_nothing(world, attack.victims, attack.stopped)


def released_nothing(world: World, victims: tuple[int, ...], stopped: str) -> None:
    """No message from `stopped` on; before M4 not one byte of a vector, and before M6 no set in the ledger."""
    sent = world.objects(ROUND)
    for later in ORDER[ORDER.index(stopped) :]:
        assert not {f"1/{later}.{u}" for u in victims} & sent, sent
    for u in victims:
        if stopped in ORDER[:4]:
            assert f"1/M3v.{u}" not in sent
            assert not world.upload_begun(ROUND, u)
        sets = [e["cohort"] for e in world.ledger(u) if e["round"] == ROUND and e["cohort"]]
        assert not sets or stopped == "M6"
    check_ledgers(world)


@pytest.fixture(scope="module")
def made(theatre: Theatre, request: pytest.FixtureRequest) -> Iterator[dict[Attack, Future[None]]]:
    """All attacks that were asked for, a few at once."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    asked = [a for spec in specs if spec is not None and (a := spec.params.get("attack")) in ATTACKS]
    with ThreadPoolExecutor(4) as pool:
        yield {a: pool.submit(make, a, theatre, f"attack{ATTACKS.index(a)}") for a in asked}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{a.number}-{a.what.replace(' ', '-')}")
def test_attack(attack: Attack, made: dict[Attack, Future[None]]) -> None:
    made[attack].result()


@pytest.fixture
def world(theatre: Theatre, request: pytest.FixtureRequest) -> Iterator[World]:
    """Four sites, with short deadlines, and no relay yet."""
    with theatre.world(QUORUM, request.node.name) as made:
        yield made


def test_both_shares_of_a_site_are_never_asked_out(world: World) -> None:
    """Site 2 has signed M4 over all sites and is killed; the relay then shows it a set without site 4."""
    world.start_relay("survivors changed", body="hostile_relay")
    sites = world.start_sites([1, 3, 4])
    dying = world.start_site(2, "sums", f"M4 after {ROUND}")
    world.await_frozen("bb", dying)
    dying.kill()
    again = world.start_site(2)
    assert again.wait(WAIT_S) == 77, world.texts()
    assert "PolicyError: the relay shows another set of survivors" in again.text()
    for child in sites.values():
        child.kill()
    released_nothing(world, (2,), "M5")


def test_the_others_go_on_without_a_site_that_was_lied_to(world: World) -> None:
    world.start_relay("M0 state", body="hostile_relay")
    sites = world.start_sites(world.numbers)
    assert sites.pop(2).wait(WAIT_S) == 77
    world.finish(sites)
    check_sums(world, [1, 3, 4])
    assert world.members(world.sums(1)["two"]) == [1, 3, 4]


def test_withheld_messages_cost_an_attempt(world: World) -> None:
    """Every M4 is withheld from all others: nobody answers, the attempt is given up, the next one is exact."""
    world.start_relay("messages dropped", body="hostile_relay")
    sites = world.start_sites(world.numbers)
    world.until(lambda: "2/M1.1" in world.objects(ROUND), "a second attempt")
    assert not [name for name in world.objects(ROUND) if name.startswith("1/M5")]
    world.finish(sites)
    check_sums(world, world.numbers)
    assert world.members(world.sums(1)["two"]) == world.numbers


def test_wrong_shares_are_named_and_not_needed(world: World) -> None:
    """Three good answers of four are enough, and who sent the wrong ones is told."""
    world.start_relay()
    sites = world.start_sites([1, 2, 4]) | {3: world.start_site(3, FEDHPC_TEST_CRIME="wrong shares")}
    honest = {u: sites[u] for u in (1, 2, 4)}
    world.finish(honest)
    check_sums(world, [1, 2, 4])
    assert world.members(world.sums(1)["two"]) == world.numbers
    assert any(f"site cc sent a wrong share of site {name}" in sites[1].text() for name in ("aa", "bb", "dd"))


def test_a_signature_for_another_configuration(world: World) -> None:
    key = world.site_file(3).parent / "sign.key"
    world.start_relay("another configuration", body="hostile_relay", FEDHPC_TEST_KEY=str(key))
    sites = world.start_sites(world.numbers)
    for child in sites.values():
        assert child.wait(WAIT_S) == 77, world.texts()
        assert "PolicyError: site cc signed another transcript in CONFIG" in child.text()
    assert not world.objects(1)


def test_a_relay_with_another_key_gets_nothing(world: World) -> None:
    folder = world.folder / "coordinator" / "relay"
    for name in ("relay.key", "relay.pem"):
        (folder / name).unlink()
    issue_new(new_authority(), "relay", 2.0).write(folder, "relay")
    world.start_relay()
    for u, child in world.start_sites(world.numbers).items():
        assert child.wait(WAIT_S) == 77, world.texts()
        assert f"PolicyError: the relay at https://127.0.0.1:{world.port} has the key" in child.text()
        assert not world.ledger(u)
    assert not (world.store / world.config).exists()


def test_a_changed_vector_on_retry(world: World) -> None:
    """A site that was killed after its vector had gone comes back with other numbers: its own ledger stops it."""
    world.start_relay()
    sites = world.start_sites([1, 3, 4])
    dying = world.start_site(2, "sums", f"vector after {ROUND}")
    world.await_frozen("bb", dying)
    dying.kill()
    again = world.start_site(2, seed=1)
    assert again.wait(WAIT_S) == 77, world.texts()
    assert "PolicyError: " in again.text()
    assert "was begun with another vector" in again.text()
    world.finish(sites)
    check_sums(world, [1, 3, 4])
    released_nothing(world, (2,), "M3")


def test_a_round_opens_over_one_set(world: World) -> None:
    """The relay ignores that a round is over and proposes it twice more, over sets that differ in one site each."""
    world.start_relay("second set", body="hostile_relay")
    for child in world.start_sites(world.numbers).values():
        assert child.wait(WAIT_S) == 69, world.texts()  # each holds the sum over all, which τ sites would not confirm
    for attempt, members in ((2, [1, 2, 3]), (3, [1, 2, 4])):
        world.until(lambda n=attempt: f"{n}/M0" in world.objects(ROUND), "another set")
        for u, child in world.start_sites(members).items():
            assert child.wait(WAIT_S) == 77, world.texts()
            assert f"was opened over sites [1, 2, 3, 4], not {members}" in child.text(), world.texts()
            assert {e["round"]: e["cohort"] for e in world.ledger(u)}[ROUND] == [1, 2, 3, 4]
        sent = world.objects(ROUND)
        assert f"{attempt}/M4r" in sent
        assert not [name for name in sent if name.startswith((f"{attempt}/M4.", f"{attempt}/M5."))]
    check_ledgers(world)


def test_a_late_vector_stays_hidden(world: World) -> None:
    """Site 4 is declared lost and its mask key is opened; then its vector comes, and the relay keeps it.

    All that is known then (every mask that site 4 shares) is taken off: it is still hidden, by its self mask alone.
    """
    world.start_relay("late vector", body="hostile_relay")
    slow = world.start_site(4, "sums", f"M3v begin {ROUND}", FEDHPC_TEST_ACTION="stop")
    sites = world.start_sites([1, 2, 3])
    world.until(lambda: "0/DONE" in world.objects(ROUND), "the end of the round")
    for child in sites.values():
        child.kill()
    slow.signal(signal.SIGCONT)
    world.until(lambda: {"1/M3v.4", "1/M3.4"} <= world.objects(ROUND), "the late vector")
    slow.kill()
    folder = world.store / world.config / str(ROUND) / "1"
    publics = {u: bytes.fromhex(json.loads((folder / f"M1.{u}").read_text())["body"]["mask"]) for u in world.numbers}
    keys = attempt_file(world.run / "dd" / "attempts" / f"round-{ROUND}.attempt")
    values = floats(4, 0)
    layout = layout_of(values, BOUND, 4)
    rest = without_edges((folder / "M3v.4").read_bytes(), layout, 4, keys, publics)
    plain = encoded(values, layout, 4)
    same = np.frombuffer(rest, np.uint8) == np.frombuffer(plain, np.uint8)
    assert same.mean() < 1 / 200  # as two unrelated strings of bytes
    assert without_self(rest, layout, 4, keys) == plain


def test_masked_vectors_look_uniform_at_the_relay(theatre: Theatre, tmp_path: Path) -> None:
    """χ² of the bytes of all vectors that the relay has just before it adds them; and none is another's repeat."""
    with theatre.world(SYNC, "uniform") as world:
        relay = world.start_relay(f"Y before {ROUND}")
        sites = world.start_sites(world.numbers)
        world.await_frozen("relay", relay)
        for child in sites.values():
            child.kill()
        found = [(world.store / world.config / str(ROUND) / "1" / f"M3v.{u}").read_bytes() for u in world.numbers]
    layout = layout_of(floats(1, 0), BOUND, 4)
    used = np.concatenate([np.arange(p.start, p.stop) for p in layout.pieces(0, layout.nbytes)])
    for data in found:
        counts = np.bincount(np.frombuffer(data, np.uint8)[used], minlength=256)
        mean = counts.sum() / 256
        assert ((counts - mean) ** 2 / mean).sum() < 255 + 8 * np.sqrt(2 * 255)
    for i, data in enumerate(found):
        for other in found[:i]:
            assert (np.frombuffer(data, np.uint8) == np.frombuffer(other, np.uint8)).mean() < 1 / 200


def test_every_row_has_its_test() -> None:
    """The tests that the table names exist; all but attack 15 (noise, attestation: not in this version) are in it."""
    tests = Path(__file__).parents[1]
    for row in OTHERS:
        file, _, function = row.test.partition("::")
        assert f"def {function}(" in (tests / file).read_text(), row.test
    numbers = {row.number for row in (*ATTACKS, *OTHERS)}
    assert numbers == {*map(str, range(1, 15)), "+"}
    assert len({(row.number, row.what) for row in (*ATTACKS, *OTHERS)}) == len(ATTACKS) + len(OTHERS)
