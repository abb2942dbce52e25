"""One key agreement among sites in memory: nothing opens when anything was changed."""

from __future__ import annotations

import dataclasses
import traceback
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secure_fakes import Sites, key_of, proposal_of

from fedhpc.errors import FedhpcError, InternalError, PolicyError
from fedhpc.secure import pairwise
from fedhpc.secure.keys import AttemptKey
from fedhpc.secure.ledger import LedgerEntry, RoundLedger
from fedhpc.secure.masks import Keystream, Masks
from fedhpc.secure.pairwise import PairwiseAttempt, refuse_difference
from fedhpc.secure.proposal import Proposal, one_base
from fedhpc.secure.ring import Codec
from fedhpc.secure.transcript import canon, parse_canon, sign_message

# Another value for each field of M0.
OTHER: dict[str, Any] = {
    "attempt": 12,
    "cohort": one_base((1, 2, 3), key_of("other base")),
    "config": key_of("other"),
    "layout": key_of("other"),
    "purpose": "weights",
    "round_": 4,
    "state": key_of("other"),
    "tensors": ((64, 5),),
}


def refused(match: str) -> Any:
    return pytest.raises(PolicyError, match=match)


def nothing_opens(attempt: PairwiseAttempt) -> None:
    with pytest.raises(InternalError, match="before every signature"):
        attempt.chains()


@pytest.mark.parametrize("count", [2, 3, 9])
def test_whole_agreement(count: int) -> None:
    attempts = Sites(count, fixed=False).signed()
    assert len({a.t2 for a in attempts}) == 1
    chains = [a.chains() for a in attempts]
    # Every key is held by exactly two sites, each under the number of the other.
    for u, mine in enumerate(chains, start=1):
        assert mine.keys() == set(range(1, count + 1)) - {u}
        assert all(chains[v - 1][u] == key for v, key in mine.items())
    assert len({key for mine in chains for key in mine.values()}) == count * (count - 1) // 2


def test_keys_wait_for_the_signatures() -> None:
    sites = Sites(3)
    attempts = sites.attempts()
    keys = [a.keys() for a in attempts]
    nothing_opens(attempts[0])
    signatures = [a.receive_keys(keys) for a in attempts]
    nothing_opens(attempts[0])
    attempts[0].receive_signatures(signatures)
    assert attempts[0].chains()


def test_two_attempts_share_no_key() -> None:
    first, second = Sites(3, fixed=False).signed(), Sites(3, fixed=False).signed()
    keys = [{key for a in run for key in a.chains().values()} for run in (first, second)]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("field", OTHER)
def test_another_value_of_any_field_of_m0_is_named(field: str) -> None:
    """Exchange honest, one site differs: all see it before a key is used, and the error names site and field."""
    sites = Sites(3)
    mine, theirs = proposal_of(3), dataclasses.replace(proposal_of(3), **{field: OTHER[field]})
    attempts = [sites.attempt(1, mine), sites.attempt(2, theirs), sites.attempt(3, mine)]
    keys = [a.keys() for a in attempts]
    assert [a.agreed(keys) for a in attempts] == [False] * 3
    name = {"round_": "round"}.get(field, field)
    with refused(f"site site-2 proposes another {name} ") as caught:
        refuse_difference(attempts[0].proposal, [a.proposal for a in attempts], sites.roster)
    assert caught.value.exit_code == 77
    with refused(f"site site-1 proposes another {name} "):
        refuse_difference(attempts[1].proposal, [a.proposal for a in attempts], sites.roster)


@pytest.mark.parametrize("field", OTHER)
def test_another_m0_is_caught_by_the_signatures_too(field: str) -> None:
    """An exchange that forges the T0 in front of the keys only moves the refusal to T2."""
    sites = Sites(3)
    mine, theirs = proposal_of(3), dataclasses.replace(proposal_of(3), **{field: OTHER[field]})
    attempts = [sites.attempt(1, mine), sites.attempt(2, theirs), sites.attempt(3, mine)]
    bodies = [a.keys()[32:] for a in attempts]
    signatures = []
    for a in attempts:
        forged = [a.keys()[:32] + body for body in bodies]
        assert a.agreed(forged)
        signatures.append(a.receive_keys(forged))
    for u, a in enumerate(attempts, start=1):
        with refused(f"site site-{1 if u == 2 else 2} signed another transcript"):
            a.receive_signatures(signatures)
        nothing_opens(a)


def attempt_with(change: Any) -> tuple[list[PairwiseAttempt], list[bytes]]:
    """Site 1 receives `change(keys)`; the others what was sent. Gives the attempts and their signatures."""
    attempts = Sites(3).attempts()
    keys = [a.keys() for a in attempts]
    received = [change(list(keys)), keys, keys]
    return attempts, [a.receive_keys(r) for a, r in zip(attempts, received, strict=True)]


def body_of(message: bytes) -> dict[str, Any]:
    return dict(parse_canon(message[32:]))


def with_field(place: int, **fields: Any) -> Any:
    def change(keys: list[bytes]) -> list[bytes]:
        keys[place] = keys[place][:32] + canon(body_of(keys[place]) | fields)
        return keys

    return change


ATTACKER = AttemptKey(key_of("attacker")).public.hex()


@pytest.mark.parametrize("fields", [{"mask": ATTACKER}, {"chan": ATTACKER}, {"left_s": 60}])
@pytest.mark.parametrize("place", [1, 2])
def test_a_changed_field_of_m1_is_caught_by_t2(place: int, fields: dict[str, Any]) -> None:
    attempts, signatures = attempt_with(with_field(place, **fields))
    for a in attempts:
        with refused("signed another transcript in MPI"):
            a.receive_signatures(signatures)
        nothing_opens(a)


@pytest.mark.parametrize("fields", [{"mask": ATTACKER}, {"chan": ATTACKER}, {"left_s": 60}])
def test_own_m1_must_come_back_unchanged(fields: dict[str, Any]) -> None:
    with refused("site site-1 got its own keys back changed"):
        attempt_with(with_field(0, **fields))


def test_keys_replaced_for_everybody_are_not_signed() -> None:
    """Whoever carries the messages puts in its own mask keys, the same for all, so that all would sign one T2.

    Every edge key would then be known to it, and each masked vector would open.
    """
    attempts = Sites(3).attempts()
    forged = [
        a.keys()[:32] + canon(body_of(a.keys()) | {"mask": AttemptKey(key_of("attacker", u)).public.hex()})
        for u, a in enumerate(attempts)
    ]
    for a in attempts:
        with refused("its own keys back changed"):
            a.receive_keys(forged)
        nothing_opens(a)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"mask": "00"}, "mask key of site site-2 is not 32 bytes"),
        ({"chan": "00"}, "chan key of site site-2 is not 32 bytes"),
        ({"mask": ATTACKER.upper()}, "mask key of site site-2 is not 32 bytes in lower-case hex"),
        ({"mask": " " * 64}, "mask key of site site-2 is not 32 bytes"),
        ({"mask": ATTACKER[:62] + "  "}, "mask key of site site-2 is not 32 bytes"),
        ({"mask": "zz" * 32}, "mask key of site site-2 is not 32 bytes"),
        ({"mask": 5}, "mask key of site site-2 is not 32 bytes"),
        ({"mask": [ATTACKER]}, "mask key of site site-2 is not 32 bytes"),
        ({"mask": ATTACKER, "chan": ATTACKER}, "site site-2 uses one key for two purposes"),
        ({"left_s": "60"}, "site site-2 has no whole number in left_s"),
        ({"extra": 1}, "M1 message of site site-2 does not have its fields"),
    ],
)
def test_malformed_keys_are_named(fields: dict[str, Any], match: str) -> None:
    with refused(match):
        attempt_with(with_field(1, **fields))


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"chan": 1}', b"\x80\x04N.", b"x" * 200])
def test_malformed_m1_is_named(body: bytes) -> None:
    def change(keys: list[bytes]) -> list[bytes]:
        return [keys[0], keys[1], keys[2][:32] + body]

    with refused("M1 message of site site-3"):
        attempt_with(change)


def test_a_replayed_key_is_refused() -> None:
    def change(keys: list[bytes]) -> list[bytes]:
        return with_field(2, mask=body_of(keys[1])["mask"])(keys)

    with refused("two sites sent the same key"):
        attempt_with(change)
    with refused("two sites sent the same key"):  # one's own key, sent back as another site's
        attempt_with(lambda keys: with_field(2, mask=body_of(keys[0])["mask"])(keys))


def test_keys_of_another_attempt_are_refused() -> None:
    old = Sites(3, salt="old").attempts(proposal_of(3, attempt=10))
    attempts = Sites(3).attempts()
    keys = [a.keys() for a in attempts]
    replayed = [keys[0], old[1].keys(), keys[2]]
    assert not attempts[0].agreed(replayed)
    # Its body under today's T0: site 2 signed something else.
    replayed[1] = keys[1][:32] + old[1].keys()[32:]
    signatures = [attempts[0].receive_keys(replayed), attempts[1].receive_keys(keys), attempts[2].receive_keys(keys)]
    with refused("site site-2 signed another transcript"):
        attempts[0].receive_signatures(signatures)
    nothing_opens(attempts[0])


def test_swapped_sites_are_refused() -> None:
    attempts, signatures = attempt_with(lambda keys: [keys[0], keys[2], keys[1]])
    with refused("signed another transcript"):
        attempts[0].receive_signatures(signatures)
    attempts, signatures = attempt_with(lambda keys: keys)
    with refused("expected MPI of site site-2, got MPI of number 3"):
        attempts[0].receive_signatures([signatures[0], signatures[2], signatures[1]])
    nothing_opens(attempts[0])


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_missing_or_further_site_is_refused(count: int) -> None:
    attempts = Sites(4).attempts()[:3]
    with pytest.raises((ValueError, PolicyError)):
        attempts[0].receive_keys([a.keys() for a in Sites(4).attempts()[:count]][:3])
    nothing_opens(attempts[0])


def signed_by(
    key: Ed25519PrivateKey, attempt: PairwiseAttempt, name: str = "MPI", body: Any = None, u: int = 2
) -> bytes:
    return sign_message(key, name, u, attempt.t2, {} if body is None else body)


def test_every_flaw_of_a_signature_over_t2_is_named() -> None:
    sites = Sites(3)
    attempts = sites.attempts()
    keys = [a.keys() for a in attempts]
    good = [a.receive_keys(keys) for a in attempts]
    me = attempts[0]
    field = parse_canon(good[1])
    flaws: list[tuple[bytes, str]] = [
        (signed_by(sites.identities[2], me), "signature of site site-2 on MPI is not valid"),
        (signed_by(Ed25519PrivateKey.generate(), me), "signature of site site-2 on MPI is not valid"),
        (signed_by(sites.identities[1], me, name="M6"), "expected MPI of site site-2, got M6"),
        (signed_by(sites.identities[1], me, body={"a": 1}), "site site-2 signed an unknown body"),
        (signed_by(sites.identities[1], me, body=[]), "site site-2 signed an unknown body"),
        (sign_message(sites.identities[1], "MPI", 2, key_of("other t2"), {}), "site site-2 signed another transcript"),
        (good[0], "expected MPI of site site-2, got MPI of number 1"),
        (b"", "MPI message of site site-2 is malformed"),
        (good[1][:-1], "MPI message of site site-2 is malformed"),
        (good[1] + b"\n", "MPI message of site site-2 is malformed"),
        (canon(field | {"body": {"a": 1}}), "signature of site site-2"),
        (canon(field | {"from": 3}), "expected MPI of site site-2"),
        (canon(field | {"name": "M1"}), "expected MPI of site site-2"),
        (canon(field | {"sig": "00" * 64}), "signature of site site-2"),
        (canon(field | {"sig": field["sig"].upper()}), "signature of site site-2"),
        (canon(field | {"t": "00" * 32}), "site site-2 signed another transcript"),
    ]
    for flaw, match in flaws:
        with refused(match) as caught:
            me.receive_signatures([good[0], flaw, good[2]])
        assert caught.value.exit_code == 77
        nothing_opens(me)
    me.receive_signatures(good)
    assert me.chains()


def test_low_order_mask_keys_are_refused_even_if_signed() -> None:
    attempts = Sites(3).attempts()
    keys = [a.keys() for a in attempts]
    keys[1] = with_field(1, mask=(b"\1" + bytes(31)).hex())(keys)[1]
    t2s = [attempts[0].receive_keys(keys), attempts[2].receive_keys(keys)]
    evil = sign_message(Sites(3).identities[1], "MPI", 2, attempts[0].t2, {})
    attempts[0].receive_signatures([t2s[0], evil, t2s[1]])
    with refused("site site-2 sent an X25519 key that is not a usable point"):
        attempts[0].chains()


def test_forced_model_inconsistency_gives_noise() -> None:
    """A site made to use another T2 (as if it checked nothing) shares no mask: the sum is noise, not a leak."""
    same = Sites(3).summing()
    other = Sites(3).summing(proposal_of(3, state=key_of("one bit flipped")))
    edges = [other[0], same[1], same[2]]
    assert not {k for k, _ in edges[0]} & {k for e in edges[1:] for k, _ in e}
    summed = np.zeros(1 << 18, dtype="<u4")
    for e in edges:
        lanes = np.full(summed.size, 7, dtype="<u4")
        Masks(e).add(lanes, 0)
        summed += lanes
    counts = np.bincount(summed.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert 150 < ((counts - expected) ** 2 / expected).sum() < 390


def test_malformed_proposals_are_named() -> None:
    roster = Sites(3).roster
    mine = proposal_of(3).to_bytes()
    for flaw in (b"", b"[]", b"null", b"{", mine + b" "):
        with refused("the proposal of site site-2"):
            refuse_difference(mine, [mine, flaw, mine], roster)
    with refused("site site-2 proposes another attempt, cohort"):
        refuse_difference(mine, [mine, b"{}", mine], roster)
    refuse_difference(mine, [mine] * 3, roster)


def test_m0_has_the_fields_of_the_protocol() -> None:
    body = parse_canon(proposal_of(2).to_bytes())
    assert sorted(body) == ["attempt", "cohort", "config", "layout", "purpose", "round", "state", "tensors"]
    assert body["cohort"] == [[1, "00" * 32], [2, "00" * 32]]
    with pytest.raises(ValueError, match="2\\^53"):
        PairwiseAttempt(proposal_of(2, attempt=2**53), 1, Sites(2).identities[0], Sites(2).roster)


def test_nothing_shown_holds_a_secret() -> None:
    """repr, str, errors and their tracebacks of every object of the vault, with canaries as private keys."""
    secrets = [b"canary-%02d-" % i + b"x" * 22 for i in range(4)]
    sites = Sites(3)
    identity = Ed25519PrivateKey.from_private_bytes(secrets[0])
    sites.roster[0] = dataclasses.replace(sites.roster[0], sign=identity.public_key())
    fresh = (AttemptKey(secrets[1]), AttemptKey(secrets[2]))
    me = PairwiseAttempt(proposal_of(3), 1, identity, sites.roster, fresh=fresh)
    others = [sites.attempt(2), sites.attempt(3)]
    keys = [a.keys() for a in (me, *others)]
    signatures = [a.receive_keys(keys) for a in (me, *others)]
    shown: list[str] = []
    try:
        me.receive_signatures([signatures[0], signatures[2], signatures[1]])
    except FedhpcError as error:
        shown += [repr(error), error.lines(), "".join(traceback.format_exception(error))]
    me.receive_signatures(signatures)
    turned = sites.ratchet(me, 1)
    turned.first(me.proposal)
    turned_keys = [*me.chains().values(), *turned._macs.values()]
    entry = LedgerEntry(1, "train", key_of("i"), key_of("f"), (1, 2))
    things: list[Any] = [
        me, turned, *fresh, identity, *sites.roster, proposal_of(3), Masks([(key, 1) for key in turned_keys]),
        Keystream(secrets[3]), Codec(3, "a", {"x": 0.5}, secrets[3]), RoundLedger([entry]), pairwise,
    ]  # fmt: skip
    for thing in things:
        shown += [repr(thing), str(thing), f"{thing}", repr([thing])]
    text = "\n".join(shown) + "".join(k.decode("latin-1") for k in keys + signatures)
    for secret in [*secrets, *turned_keys]:
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
        assert secret.decode("latin-1") not in text


def test_proposal_is_a_value() -> None:
    assert proposal_of(3) == proposal_of(3)
    assert isinstance(proposal_of(3), Proposal)
