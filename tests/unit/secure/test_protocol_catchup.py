"""A site that was away catches up, and configurations follow each other; each lie on the way is refused by name."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protocol_fakes import World
from secure_fakes import key_of
from test_protocol_fuzz import mutated

from fedhpc.errors import FedhpcError, InternalError, PolicyError
from fedhpc.secure.catch_up_messages import BLOCK_BYTES, CaughtUp, CommonKnowledge, Giver, Taker
from fedhpc.secure.epochs import NO_PREVIOUS, Configuration, approve, check_follows, check_signed, move
from fedhpc.secure.messages import Result
from fedhpc.secure.pairwise import Member
from fedhpc.secure.results import abandon
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import canon, parse_canon, sign_message, state_hash

WORLD = World(4)
CONFIG = key_of("config")
TENSORS = secrets.token_bytes(2 * BLOCK_BYTES + 1234)


def federation(nbytes: int = len(TENSORS)) -> CommonKnowledge:
    return CommonKnowledge(CONFIG, WORLD.roster, WORLD.thresholds, nbytes)


def proof(
    tensors: bytes = TENSORS, round_: int = 9, signers: tuple[int, ...] = (1, 2, 3), t: bytes = b""
) -> list[bytes]:
    body = Result(state_hash(CONFIG, round_, SHA256.tree(tensors)), key_of("sum"), (1, 2, 3)).as_json()
    return [sign_message(WORLD.identities[u], "M6", u, t or key_of("T3"), body) for u in signers]


def taker(round_: int = 7) -> Taker:
    return Taker(federation(), 4, WORLD.identities[4], WORLD.state, round_)


def giver(to: Taker, round_: int = 9, of: list[bytes] | None = None) -> Giver:
    return Giver(federation(), 2, WORLD.identities[2], 4, to.need, round_, proof() if of is None else of)


def transfer(to: Taker, source: Giver, tensors: bytes = TENSORS) -> CaughtUp:
    to.receive_state(2, source.state)
    count = -(-len(tensors) // BLOCK_BYTES)
    got = [to.block(n, source.box(n, tensors[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES])) for n in range(count)]
    return to.finish(SHA256.tree(b"".join(got)))


def test_a_site_catches_up() -> None:
    to = taker()
    caught = transfer(to, giver(to))
    assert caught.round_ == 9
    assert caught.state == state_hash(CONFIG, 9, SHA256.tree(TENSORS))
    assert caught.settled.u3 == (1, 2, 3)


def test_an_abandoned_round_is_caught_up_with_as_well() -> None:
    world = World(4)
    for u in (1, 2, 3):
        attempt_entry = world.disks[u].ledger.entry_of(7)
        assert attempt_entry is None
    world.attempt().run(stop="M6")
    state = state_hash(CONFIG, 9, SHA256.tree(TENSORS))
    signed = [
        abandon(world.identities[u], u, world.disks[u], world.disks[u].ledger.entry_of(7), world.state, state)
        for u in (1, 2, 3)
    ]
    to = taker()
    assert transfer(to, giver(to, of=signed)).settled.u3 == ()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"of": proof()[:2]}, "does not bring 3 signatures"),
        ({"of": [*proof()[:2], proof()[1]]}, "does not bring 3 signatures"),
        ({"of": [*proof()[:2], *proof(b"other", signers=(3,))]}, "does not bring 3 signatures"),
        ({"of": []}, "does not bring 3 signatures"),
        ({"round_": 7}, "offers round 7; this site is at round 7 already"),
        ({"round_": 3}, "offers round 3"),
    ],
)
def test_an_offer_that_is_not_proven_or_not_later(changes: dict[str, Any], match: str) -> None:
    to = taker()
    with pytest.raises(PolicyError, match=match):
        to.receive_state(2, giver(to, **changes).state)
    with pytest.raises(InternalError):
        to.block(0, b"")


def test_another_model_or_another_round_than_was_signed() -> None:
    for tensors, round_ in ((bytes(len(TENSORS)), 9), (TENSORS, 10)):
        to = taker()
        with pytest.raises(PolicyError, match="site site-2 gave another model than 3 sites signed"):
            transfer(to, giver(to, round_), tensors)


def test_blocks_that_were_changed_moved_or_meant_for_another() -> None:
    to, other = taker(), taker()
    source = giver(to)
    to.receive_state(2, source.state)
    boxes = [source.box(n, TENSORS[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES]) for n in range(3)]
    for n, box, match in [
        (0, boxes[1], "does not open"),
        (1, boxes[1][:-1] + bytes([boxes[1][-1] ^ 1]), "does not open"),
        (1, boxes[2], "sealed 1234 bytes where 1048576 belong"),
        (3, boxes[2], "no block 3"),
        (-1, boxes[2], "no block -1"),
    ]:
        with pytest.raises(PolicyError, match=match):
            to.block(n, box)
    with pytest.raises(PolicyError, match="signed another transcript in STATE"):
        other.receive_state(2, source.state)
    with pytest.raises(PolicyError, match="expected STATE of site site-3"):
        to.receive_state(3, source.state)
    with pytest.raises(InternalError, match="block 2 has 3 bytes"):
        source.box(2, b"abc")


def test_a_need_of_another_site_or_configuration() -> None:
    to = taker()
    with pytest.raises(PolicyError, match="expected NEED of site site-3"):
        Giver(federation(), 2, WORLD.identities[2], 3, to.need, 9, proof())
    elsewhere = CommonKnowledge(key_of("other"), WORLD.roster, WORLD.thresholds, 10)
    with pytest.raises(PolicyError, match="signed another transcript in NEED"):
        Giver(elsewhere, 2, WORLD.identities[2], 4, to.need, 9, proof())
    with pytest.raises(PolicyError, match="there is no site 9"):
        Giver(federation(), 2, WORLD.identities[2], 9, to.need, 9, proof())
    low = parse_canon(to.need)["body"] | {"key": bytes(32).hex()}
    with pytest.raises(PolicyError, match="not a usable point"):
        Giver(federation(), 2, WORLD.identities[2], 4, sign_message(WORLD.identities[4], "NEED", 4, CONFIG, low), 9, [])


def test_two_answers_to_one_need_have_different_box_keys() -> None:
    """A giver that starts again seals other bytes under the same numbers: never with the same key."""
    to = taker()
    block = TENSORS[:BLOCK_BYTES]
    assert giver(to).box(0, block) != giver(to).box(0, block)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_fuzzed_need_and_state(data: st.DataObject) -> None:
    to = taker()
    need, state = to.need, giver(to).state
    bad_need, bad_state = data.draw(mutated(need)), data.draw(mutated(state))
    for genuine, bad, call in (
        (state, bad_state, lambda: to.receive_state(2, bad_state)),
        (need, bad_need, lambda: Giver(federation(), 2, WORLD.identities[2], 4, bad_need, 9, proof())),
    ):
        try:
            call()
        except FedhpcError:
            continue
        assert bad == genuine


# --- configurations ---

FIRST = Configuration(key_of("first"), 0, NO_PREVIOUS)
SECOND = Configuration(key_of("second"), 1, FIRST.hash)


def signatures(config: Configuration, present: Configuration | None) -> dict[int, bytes]:
    return {u: approve(key, u, present, config) for u, key in WORLD.identities.items()}


def test_configurations_follow_each_other() -> None:
    first = signatures(FIRST, None)
    assert move(None, FIRST, 1, first[1], WORLD.roster, first) == FIRST
    assert move(FIRST, FIRST, 1, first[1], WORLD.roster, first) == FIRST
    second = signatures(SECOND, FIRST)
    assert move(FIRST, SECOND, 1, second[1], WORLD.roster, second) == SECOND
    check_follows(None, SECOND)  # a site that joins at epoch 1


@pytest.mark.parametrize(
    ("present", "following", "match"),
    [
        (SECOND, FIRST, "has epoch 0; this site is at epoch 1"),
        (FIRST, Configuration(key_of("x"), 2, FIRST.hash), "has epoch 2"),
        (FIRST, Configuration(key_of("x"), 0, NO_PREVIOUS), "has epoch 0"),
        (FIRST, Configuration(key_of("x"), 1, key_of("y")), "follows .* and this site has"),
        (None, Configuration(key_of("x"), 0, key_of("y")), "wrong previous"),
        (None, Configuration(key_of("x"), 1, NO_PREVIOUS), "wrong previous"),
        (None, Configuration(key_of("x"), -1, NO_PREVIOUS), "wrong previous"),
    ],
)
def test_a_roster_that_was_turned_back_or_belongs_elsewhere(
    present: Configuration | None, following: Configuration, match: str
) -> None:
    with pytest.raises(PolicyError, match=match):
        approve(WORLD.identities[1], 1, present, following)
    with pytest.raises(PolicyError, match=match):
        move(present, following, 1, b"x", WORLD.roster, {1: b"x"})


def test_a_configuration_that_not_all_signed() -> None:
    signed = signatures(FIRST, None)
    with pytest.raises(PolicyError, match="not signed by site-3"):
        check_signed(FIRST, WORLD.roster, {u: s for u, s in signed.items() if u != 3})
    with pytest.raises(PolicyError, match="site site-3 signed another transcript in CONFIG"):
        check_signed(FIRST, WORLD.roster, signed | {3: signatures(SECOND, FIRST)[3]})
    forged = sign_message(WORLD.identities[1], "CONFIG", 3, FIRST.hash, {})
    with pytest.raises(PolicyError, match="signature of site site-3 on CONFIG is not valid"):
        check_signed(FIRST, WORLD.roster, signed | {3: forged})
    with pytest.raises(PolicyError, match="does not have its fields"):
        check_signed(FIRST, WORLD.roster, signed | {3: sign_message(WORLD.identities[3], "CONFIG", 3, FIRST.hash, [])})
    stranger = Member(4, "site-4", Ed25519PrivateKey.generate().public_key())
    with pytest.raises(PolicyError, match="signature of site site-4"):
        check_signed(FIRST, [*WORLD.roster[:3], stranger], signed)
    with pytest.raises(PolicyError, match="did not approve"):
        move(None, FIRST, 1, None, WORLD.roster, signed)
    with pytest.raises(PolicyError, match="did not approve"):
        move(None, FIRST, 1, canon({}), WORLD.roster, signed)
