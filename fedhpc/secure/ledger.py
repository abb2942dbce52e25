"""The round ledger: what a site has put into which sum of one federation, kept forever (docs/protocol.md section 5).

Two sums of a site's number that differ in one other site are that site's number. So a round has one vector and opens
over one set, and an input belongs to one round. These four rules are here; what holds over all federations of an
institution is in home_ledger.py, the file in ledger/file.py.

A round's entry only ever gains: first the vector (before M3), then the set (before M5), then the next state (before M6
or ABANDON). Where all is known at once, as in the `mpi` exchange, one entry holds it all.

A vector is remembered by a fingerprint: a keyed 128-bit GMAC of each 2^20-byte block, and HMAC-SHA256 over those. Only
the site itself ever compares it, so a keyed hash suffices, and it is ten times faster than SHA-256 of the vector.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.keys import derive
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, canon, u64

FINGERPRINT_BLOCK_BYTES = TREE_BLOCK_BYTES
GENESIS = bytes(32)  # the hash before the first entry

NO_SET: tuple[int, ...] = ()  # the round was begun; no set was opened with this site's shares
NO_VECTOR = bytes(32)  # τ sites signed a result without this site: its input is free again, the round is closed to it
NO_STATE = b""
UNKNOWN = b""  # a configuration, value or store that the entry does not say
ZERO_VALUE = bytes(32)  # the value of a vector of zeros, which shows no site's numbers

_FIELDS = {"cohort", "fingerprint", "input", "purpose", "round"}
_DIGESTS = ("state", "config", "value", "data")
_MORE = {"category", "config", "data", "everyone", "state", "value"}


class OtherVectorError(PolicyError):
    """This site put another vector into this round before: it can take no part in it with this one."""


@dataclass(frozen=True, repr=False)
class LedgerKeys:
    """The keys of a site's fingerprints: one key for two algorithms would need a proof of its own."""

    blocks: bytes  # of the GMAC, the same for every federation [32]
    whole: bytes  # of the HMAC over an encoded vector, for one federation alone [32]
    value: bytes  # of the HMAC over a vector's numbers, the same for every federation [32]


def ledger_keys(config: bytes, home: bytes, number: int) -> LedgerKeys:
    """The keys of site `number`, from the key of its ledger's `home` [32] and the configuration's hash [32].

    The home's key outlives the keys that a site signs with, so a rotation does not hide that numbers are the same.
    """
    return LedgerKeys(
        home_key(home, labels.KEY_LEDGER_BLOCKS),
        derive(config, home, labels.KEY_LEDGER, number),
        home_key(home, labels.KEY_LEDGER_VALUE),
    )


def home_key(home: bytes, name: bytes) -> bytes:
    """A key of the whole ledger [32]. It outlives versions of the protocol, so their label is not in it."""
    return hmac.new(home, b"fedhpc ledger\0" + name, hashlib.sha256).digest()


def fingerprint_block(key: bytes, number: int, block: NDArray[np.uint8]) -> bytes:
    """The GMAC tag (AES-256-GCM, SP 800-38D, no ciphertext) of block `number`, 2^20 bytes or the last ones [16].

    The nonce is the number. Tags never leave the process: with a repeated nonce they would betray the GMAC key, so
    `fingerprint` keeps only an HMAC of them.
    """
    mac = Cipher(algorithms.AES(key), modes.GCM(number.to_bytes(12, "little"))).encryptor()
    mac.authenticate_additional_data(block.data)
    mac.finalize()
    return mac.tag


def fingerprint(key: bytes, layout: bytes, factors: bytes, nbytes: int, tags: Iterable[bytes]) -> bytes:
    """What the ledger remembers of a vector: HMAC over its layout, weights, length and its blocks' tags [32]."""
    mac = hmac.new(key, u64(nbytes) + layout + u64(len(factors)) + factors, hashlib.sha256)
    for tag in tags:
        mac.update(tag)
    return mac.digest()


def value_fingerprint(key: bytes, header: bytes, tags: Iterable[bytes]) -> bytes:
    """What rule 5 remembers of a vector: HMAC over names, shapes and kinds (`header`) and its blocks' tags [32]."""
    mac = hmac.new(key, u64(len(header)) + header, hashlib.sha256)
    for tag in tags:
        mac.update(tag)
    return mac.digest()


@dataclass(frozen=True)
class Mark:
    """What the ledger remembers of a vector, besides the round that it is in."""

    fingerprint: bytes  # of the vector as it is encoded: layout, factors and all [32]
    category: str = ""  # the class of the sum; empty where rule 5 is not kept, since nothing is hidden
    value: bytes = UNKNOWN  # of the numbers alone [32], ZERO_VALUE for zeros
    everyone: bool = False  # the sum opens over the whole roster, or not at all
    data: bytes = UNKNOWN  # of training: what is known of the site's store

    def on(self, entry: LedgerEntry) -> LedgerEntry:
        """`entry` with what it does not say by itself."""
        return replace(entry, category=self.category, value=self.value, everyone=self.everyone, data=self.data)


@dataclass(frozen=True)
class LedgerEntry:
    """One opened or about-to-be-opened sum of this site."""

    round_: int
    purpose: str
    input: bytes  # H("input", purpose, base) [32]
    fingerprint: bytes  # of the vector [32]
    cohort: tuple[int, ...]  # site numbers, rising; NO_SET before M5
    state: bytes = NO_STATE  # the next state this site signed for the round [32], or NO_STATE
    config: bytes = UNKNOWN  # the federation [32]
    category: str = ""  # as in Mark, like the next three
    value: bytes = UNKNOWN
    everyone: bool = False
    data: bytes = UNKNOWN

    def as_json(self) -> dict[str, Any]:
        """The entry as it is stored and hashed; what it does not say is absent."""
        said: dict[str, Any] = {name: digest.hex() for name in _DIGESTS if (digest := getattr(self, name))}
        said |= {"category": self.category} if self.category else {}
        said |= {"everyone": 1} if self.everyone else {}
        return said | {
            "cohort": list(self.cohort),
            "fingerprint": self.fingerprint.hex(),
            "input": self.input.hex(),
            "purpose": self.purpose,
            "round": self.round_,
        }


def entry_from_json(value: Any) -> LedgerEntry:
    """The entry in `value`. Raises ValueError for any other form."""
    if not isinstance(value, dict) or not _FIELDS <= value.keys() <= _FIELDS | _MORE:
        raise ValueError("not a ledger entry")
    cohort = value["cohort"]
    if not isinstance(cohort, list) or any(type(u) is not int for u in cohort):
        raise ValueError("a ledger entry's cohort is not a list of site numbers")
    if type(value["round"]) is not int or type(value["purpose"]) is not str:
        raise ValueError("a ledger entry's round or purpose has the wrong type")
    digests = {name: bytes.fromhex(str(value.get(name, ""))) for name in ("input", "fingerprint", *_DIGESTS)}
    if any(len(d) != (64 if name == "data" else 32) for name, d in digests.items() if d or name in _FIELDS):
        raise ValueError("a ledger entry's hash does not have its length")
    entry = LedgerEntry(
        value["round"],
        value["purpose"],
        cohort=tuple(cohort),
        category=str(value.get("category", "")),
        everyone=value.get("everyone") == 1,
        **digests,
    )
    if entry.as_json() != value:
        raise ValueError("a ledger entry's hash is not in lower-case hex")
    return entry


class RoundLedger:
    """The rules over all entries of one site in one federation, oldest first."""

    def __init__(self, entries: Sequence[LedgerEntry] = ()) -> None:
        self._by_round: dict[int, LedgerEntry] = {}
        self._by_input: dict[bytes, LedgerEntry] = {}
        self.head = GENESIS
        self._heads = {GENESIS}
        for entry in entries:
            self.add(entry)

    @property
    def last_round(self) -> int:
        """The highest round with an entry; 0 before the first."""
        return max(self._by_round, default=0)

    def __len__(self) -> int:
        return len(self._by_round)

    def holds(self, head: bytes) -> bool:
        """Whether everything that led to `head` [32] is in it."""
        return head in self._heads

    def round_of(self, input_: bytes) -> int | None:
        """The round that `input_` belongs to, if it has one."""
        entry = self._by_input.get(input_)
        return None if entry is None else entry.round_

    def entries(self) -> list[LedgerEntry]:
        """What is known of each round, rising."""
        return [self._by_round[r] for r in sorted(self._by_round)]

    def entry_of(self, round_: int) -> LedgerEntry | None:
        """What is known of `round_`: its vector, its set and its state, each once it was admitted."""
        return self._by_round.get(round_)

    def check(self, entry: LedgerEntry) -> bool:
        """Whether `entry` is new and must be written before anything is sent; False if it repeats what was admitted.

        Raises PolicyError where the sums together could isolate a site: another vector or set in the same round, or the
        same input in another round; and where this site would sign two states for one round.
        """
        known = self._by_round.get(entry.round_)
        if known is not None:
            return self._gains(known, entry)
        other = self._by_input.get(entry.input)
        if other is not None:
            raise PolicyError(
                f"'{entry.purpose}' was summed in round {other.round_} already and cannot be summed again in round "
                f"{entry.round_}",
                "give a new statistic a new name; continue a run from its own checkpoints",
            )
        return True

    def add(self, entry: LedgerEntry) -> None:
        """Take in an `entry` that was checked and is durable."""
        known = self._by_round.get(entry.round_)
        merged = entry
        if known is not None and entry.fingerprint != NO_VECTOR:
            merged = replace(known, cohort=entry.cohort or known.cohort, state=entry.state or known.state)
        self._by_round[entry.round_] = merged
        if merged.fingerprint != NO_VECTOR:
            self._by_input[entry.input] = merged
        elif self._by_input.get(entry.input) == known:
            self._by_input.pop(entry.input, None)
        self.head = chain(self.head, entry)
        self._heads.add(self.head)

    def _gains(self, known: LedgerEntry, entry: LedgerEntry) -> bool:
        """Whether `entry` adds a set, a state or the release of the input to what is `known` of its round."""
        if known.input != entry.input:
            raise PolicyError(
                f"round {entry.round_} belongs to '{known.purpose}'; it cannot be used for '{entry.purpose}'",
                "continue from the checkpoints of this run; a second run is `fedhpc federation next --again`",
            )
        # τ results over a set leave too few sites for any other, so even one that this site answered over is released;
        # only a result that it signed itself stands against it.
        released = NO_VECTOR == entry.fingerprint != known.fingerprint
        if known.fingerprint == NO_VECTOR and entry.fingerprint != NO_VECTOR:
            raise PolicyError(
                f"round {entry.round_} ended without this site, over sites {list(known.cohort)}",
                "catch up with the others and take part in a later round",
            )
        if not released and not hmac.compare_digest(known.fingerprint, entry.fingerprint):
            raise OtherVectorError(
                f"round {entry.round_} ('{entry.purpose}') was begun with another vector; the two sums would differ by "
                "this site's data",
                "training must repeat exactly (seeds, threads, device, data); a second run of the federation is its "
                "next epoch: `fedhpc federation next --again`",
            )
        if not released and known.cohort and entry.cohort and known.cohort != entry.cohort:
            raise PolicyError(
                f"round {entry.round_} was opened over sites {list(known.cohort)}, not {list(entry.cohort)}",
                "a round opens over one set of sites only",
            )
        if known.state and entry.state and known.state != entry.state:
            raise PolicyError(
                f"round {entry.round_} has another next state, signed by this site already",
                "a site signs one next state per round; the evidence is in its ledger",
            )
        if released and known.cohort and known.state:
            raise PolicyError(
                f"round {entry.round_} cannot have ended without this site: this site signed its result",
                "two results of one round are evidence against the sites that signed both; keep them",
            )
        new_set, new_state = entry.cohort and not known.cohort, entry.state and not known.state
        return bool(released or new_set or new_state)


def chain(head: bytes, entry: LedgerEntry) -> bytes:
    """The hash of the ledger after `entry`: a removed or changed line breaks it [32]."""
    return hashlib.sha256(head + canon(entry.as_json())).digest()
