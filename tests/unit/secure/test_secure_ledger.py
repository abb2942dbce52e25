"""The ledger's rules: one vector and one set a round, one round an input; anything else is refused with code 77."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from secure_fakes import key_of, random_bytes

from fedhpc.errors import PolicyError
from fedhpc.secure.ledger import (
    FINGERPRINT_BLOCK_BYTES,
    GENESIS,
    NO_SET,
    NO_VECTOR,
    LedgerEntry,
    RoundLedger,
    chain,
    entry_from_json,
    fingerprint,
    fingerprint_block,
)
from fedhpc.secure.transcript import canon

KEY = b"\x07" * 32
FIRST = LedgerEntry(4, "train", key_of("input"), key_of("vector"), (1, 2, 3))


def admit(ledger: RoundLedger, entry: LedgerEntry) -> bool:
    new = ledger.check(entry)
    if new:
        ledger.add(entry)
    return new


def other(**changes: Any) -> LedgerEntry:
    return dataclasses.replace(FIRST, **changes)


def test_new_then_repeat() -> None:
    ledger = RoundLedger()
    assert (len(ledger), ledger.last_round, ledger.head) == (0, 0, GENESIS)
    assert admit(ledger, FIRST)
    assert not admit(ledger, FIRST)
    assert not admit(ledger, other())  # an equal entry, another object
    assert (len(ledger), ledger.last_round, ledger.round_of(FIRST.input)) == (1, 4, 4)
    assert ledger.round_of(key_of("unknown")) is None


def test_check_alone_admits_nothing() -> None:
    ledger = RoundLedger()
    assert ledger.check(FIRST)
    assert ledger.check(FIRST)
    assert (len(ledger), ledger.head, ledger.round_of(FIRST.input)) == (0, GENESIS, None)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fingerprint": key_of("another")}, "round 4 .'train'. was begun with another vector"),
        ({"fingerprint": FIRST.fingerprint[:31] + b"\0"}, "another vector"),
        ({"cohort": (1, 2)}, r"opened over sites \[1, 2, 3\], not \[1, 2\]"),
        ({"cohort": (1, 2, 4)}, "opened over sites"),
        ({"cohort": (1, 2, 3, 4)}, "opened over sites"),
        ({"input": key_of("other input")}, "round 4 belongs to 'train'"),
        ({"input": key_of("other input"), "purpose": "mean age"}, "it cannot be used for 'mean age'"),
        ({"round_": 5}, "summed in round 4 already and cannot be summed again in round 5"),
        ({"round_": 3}, "summed in round 4 already"),
        ({"round_": 5, "fingerprint": key_of("another")}, "summed in round 4 already"),
        ({"round_": 5, "cohort": (1, 2)}, "summed in round 4 already"),
    ],
)
def test_each_rule(changes: dict[str, Any], match: str) -> None:
    ledger = RoundLedger([FIRST])
    before = ledger.head
    with pytest.raises(PolicyError, match=match) as caught:
        ledger.check(other(**changes))
    assert caught.value.exit_code == 77
    assert caught.value.hint
    assert (len(ledger), ledger.head) == (1, before)
    assert not ledger.check(FIRST)


def test_other_inputs_in_other_rounds_are_new() -> None:
    ledger = RoundLedger([FIRST])
    assert admit(ledger, other(round_=5, input=key_of("next")))
    assert admit(ledger, other(round_=2, input=key_of("earlier")))
    assert (len(ledger), ledger.last_round) == (3, 5)


def test_chain_and_reload() -> None:
    entries = [other(round_=r, input=key_of(r), purpose=f"p{r}") for r in range(1, 6)]
    ledger = RoundLedger()
    head = bytes(32)
    for entry in entries:
        admit(ledger, entry)
        text = json.dumps(entry.as_json(), sort_keys=True, separators=(",", ":")).encode()
        head = hashlib.sha256(head + text).digest()
        assert ledger.head == head
    assert RoundLedger(entries).head == head
    assert chain(GENESIS, entries[0]) != chain(head, entries[0])
    for n in range(5):  # removing, changing or swapping any one entry gives another head
        assert RoundLedger(entries[:n] + entries[n + 1 :]).head != head
        changed = [*entries]
        changed[n] = dataclasses.replace(entries[n], cohort=(1, 2))
        assert RoundLedger(changed).head != head
    assert RoundLedger(entries[::-1]).head != head


def test_json_round_trip_and_refusals() -> None:
    good = FIRST.as_json()
    assert entry_from_json(json.loads(canon(good))) == FIRST
    bad: list[Any] = [
        None, [], "x", {}, {k: v for k, v in good.items() if k != "cohort"}, good | {"extra": 1},
        good | {"cohort": "1,2,3"}, good | {"cohort": [1, "2"]}, good | {"cohort": [1, True]}, good | {"cohort": None},
        good | {"round": "4"}, good | {"round": True}, good | {"round": 4.0}, good | {"purpose": 1},
        good | {"input": "00"}, good | {"fingerprint": "zz" * 32}, good | {"fingerprint": 3},
        good | {"input": good["input"].upper()}, good | {"input": good["input"] + " "},
    ]  # fmt: skip
    for value in bad:
        with pytest.raises(ValueError):  # noqa: PT011
            entry_from_json(value)


def reference(key: bytes, layout: bytes, factors: bytes, data: bytes) -> bytes:
    """The fingerprint from its definition: AES-GCM of nothing with the block as associated data, then HMAC."""
    message = len(data).to_bytes(8, "little") + layout + len(factors).to_bytes(8, "little") + factors
    for number, at in enumerate(range(0, len(data), 1 << 20)):
        message += AESGCM(key).encrypt(number.to_bytes(12, "little"), b"", data[at : at + (1 << 20)])
    return hmac.digest(key, message, "sha256")


def tags_of(data: Any, start: int, stop: int, key: bytes = KEY) -> bytes:
    """The tags of the blocks of bytes start..stop, as a rank makes them."""
    size = FINGERPRINT_BLOCK_BYTES
    blocks = [data[at : min(at + size, stop)] for at in range(start, stop, size)]
    return b"".join(fingerprint_block(key, start // size + i, block) for i, block in enumerate(blocks))


def mark(data: Any, key: bytes = KEY, layout: bytes = bytes(32), factors: bytes = b"{}") -> bytes:
    return fingerprint(key, layout, factors, len(data), [tags_of(data, 0, len(data), key)])


@pytest.mark.parametrize("size", [0, 1, 4096, FINGERPRINT_BLOCK_BYTES, 2 * FINGERPRINT_BLOCK_BYTES + 17])
def test_fingerprint_is_as_documented_and_the_same_over_any_ranks(size: int) -> None:
    data = random_bytes(size, 1)
    expected = reference(KEY, b"l" * 32, b'{"a":"0x1p-2"}', data.tobytes())
    border = min(size, FINGERPRINT_BLOCK_BYTES)
    for tags in (
        [tags_of(data, 0, size)],
        [tags_of(data, 0, border), tags_of(data, border, size), b""],
    ):
        assert fingerprint(KEY, b"l" * 32, b'{"a":"0x1p-2"}', size, tags) == expected


@given(st.integers(0, 8 * 3000 - 1))
def test_one_bit_changes_the_fingerprint(bit: int) -> None:
    data = random_bytes(3000, 2)
    before = mark(data)
    data[bit // 8] ^= 1 << (bit % 8)
    assert mark(data) != before


def test_everything_else_changes_the_fingerprint_too() -> None:
    data = random_bytes(2 * FINGERPRINT_BLOCK_BYTES, 3)
    swapped = np.concatenate([data[FINGERPRINT_BLOCK_BYTES:], data[:FINGERPRINT_BLOCK_BYTES]])
    found = [
        mark(data), mark(swapped), mark(data[:-1]), mark(data, key=b"\x08" * 32), mark(data, layout=b"l" * 32),
        mark(data, factors=b'{"a":"0x1p-1"}'), mark(data[:FINGERPRINT_BLOCK_BYTES]), mark(data[:0]),
        mark(np.zeros(10, dtype=np.uint8)), mark(np.zeros(11, dtype=np.uint8)),
    ]  # fmt: skip
    assert len(set(found)) == len(found)


# --- rounds over a relay: the vector, then the set, then the state ---

BEGUN = LedgerEntry(4, "train", key_of("input"), key_of("vector"), NO_SET)
OPENED = dataclasses.replace(BEGUN, cohort=(1, 2, 3))
SIGNED = dataclasses.replace(OPENED, state=key_of("next"))
MISSED = dataclasses.replace(BEGUN, fingerprint=NO_VECTOR, cohort=(2, 3, 4), state=key_of("next"))


def test_a_round_gains_its_vector_its_set_and_its_state() -> None:
    ledger = RoundLedger()
    for entry in (BEGUN, OPENED, SIGNED):
        assert ledger.check(entry)
        ledger.add(entry)
        for known in (BEGUN, OPENED, SIGNED)[: (BEGUN, OPENED, SIGNED).index(entry) + 1]:
            assert not ledger.check(known)
    assert ledger.entry_of(4) == SIGNED
    assert RoundLedger([BEGUN, OPENED, SIGNED]).entry_of(4) == SIGNED
    assert RoundLedger([BEGUN, OPENED, SIGNED]).head == ledger.head
    for entry, match in [
        (dataclasses.replace(OPENED, cohort=(1, 2, 4)), "opened over sites"),
        (dataclasses.replace(SIGNED, state=key_of("x")), "another next state"),
        (dataclasses.replace(BEGUN, state=key_of("x")), "another next state"),
        (dataclasses.replace(BEGUN, fingerprint=key_of("x")), "another vector"),
        (dataclasses.replace(BEGUN, input=key_of("x")), "belongs to 'train'"),
        (dataclasses.replace(BEGUN, round_=5), "was summed in round 4"),
    ]:
        with pytest.raises(PolicyError, match=match):
            ledger.check(entry)


@pytest.mark.parametrize("before", [[BEGUN], [BEGUN, OPENED]])
def test_a_round_that_ended_without_the_site_frees_its_input(before: list[LedgerEntry]) -> None:
    ledger = RoundLedger(before)
    assert ledger.check(MISSED)
    ledger.add(MISSED)
    assert not ledger.check(MISSED)
    assert ledger.round_of(BEGUN.input) is None
    for entry in (BEGUN, OPENED, SIGNED):
        with pytest.raises(PolicyError, match="ended without this site"):
            ledger.check(entry)
    again = dataclasses.replace(BEGUN, round_=6)
    assert ledger.check(again)
    ledger.add(again)
    assert RoundLedger([*before, MISSED, again]).round_of(BEGUN.input) == 6
    with pytest.raises(PolicyError, match="was summed in round 6"):
        ledger.check(dataclasses.replace(BEGUN, round_=7))


def test_a_signed_round_is_not_given_back() -> None:
    ledger = RoundLedger([BEGUN, OPENED, SIGNED])
    with pytest.raises(PolicyError, match="another next state"):
        ledger.check(dataclasses.replace(MISSED, state=key_of("x")))
    with pytest.raises(PolicyError, match="this site signed its result"):
        ledger.check(MISSED)


@pytest.mark.parametrize("entry", [BEGUN, OPENED, SIGNED, MISSED])
def test_entries_of_all_kinds_come_back_from_their_json(entry: LedgerEntry) -> None:
    assert entry_from_json(entry.as_json()) == entry
    with pytest.raises(ValueError, match=r"hash|hex"):
        entry_from_json(entry.as_json() | {"state": "00"})
