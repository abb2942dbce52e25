"""The bodies of messages M0–M6, read and written in their one exact form (docs/protocol.md section 4).

Everything here comes from a peer or from the relay: the length is checked before anything is parsed, then the canonical
form, then every field, and whatever differs is refused with the site's name. Nothing here decides whether a message
fits the attempt; that is attempt.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fedhpc.errors import PolicyError
from fedhpc.secure.geometry import refuse_lane_bits
from fedhpc.secure.keys import KEY_BYTES
from fedhpc.secure.message_kinds import SHARES_BYTES, max_bytes
from fedhpc.secure.pairwise import Member
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.sealing import SEAL_BYTES
from fedhpc.secure.shares import SHARE_BYTES
from fedhpc.secure.tag import TAG_BYTES
from fedhpc.secure.transcript import HASH_BYTES, MAX_CANON_BYTES, canon, open_envelope, open_message, parse_canon

_HINT_LIMIT = 1 << 40


@dataclass(frozen=True)
class Keys:
    """M1: two fresh X25519 public keys [32 each]. `left_s` is -1 and says nothing (message_kinds.py)."""

    chan: bytes
    mask: bytes
    left_s: int

    def as_json(self) -> dict[str, Any]:
        """The body."""
        return {"chan": self.chan.hex(), "left_s": self.left_s, "mask": self.mask.hex()}


@dataclass(frozen=True)
class Shares:
    """M2: commitments and sealed shares, one per site of U1 in rising order."""

    commit: bytes
    group: bytes
    hash_a: tuple[bytes, ...]
    hash_b: tuple[bytes, ...]
    sealed: tuple[bytes, ...]

    def as_json(self) -> dict[str, Any]:
        """The body."""
        return {
            "commit": self.commit.hex(),
            "group": self.group.hex(),
            "hash_a": [h.hex() for h in self.hash_a],
            "hash_b": [h.hex() for h in self.hash_b],
            "sealed": [s.hex() for s in self.sealed],
        }


@dataclass(frozen=True)
class Masked:
    """M3: the masked tag [24] and Tree(y) [32]."""

    tag: bytes
    vector: bytes

    def as_json(self) -> dict[str, Any]:
        """The body."""
        return {"tag": self.tag.hex(), "vector": self.vector.hex()}


@dataclass(frozen=True)
class Survivors:
    """M4 of the relay: the set and Tree(Y)."""

    sum_: bytes
    u3: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """The unsigned message."""
        return canon({"sum": self.sum_.hex(), "u3": list(self.u3)})


@dataclass(frozen=True)
class Unmask:
    """M5: one sealed box of shares per site of U3 in rising order."""

    sealed: tuple[bytes, ...]

    def as_json(self) -> dict[str, Any]:
        """The body."""
        return {"sealed": [s.hex() for s in self.sealed]}


@dataclass(frozen=True)
class Result:
    """M6: the next state, Tree(X) (empty where the sum makes the next model), and the set that was summed."""

    state: bytes
    sum_: bytes
    u3: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The body."""
        return {"state": self.state.hex(), "sum": self.sum_.hex(), "u3": list(self.u3)}


def read_envelope(data: bytes, name: str, u: int, sites: int) -> dict[str, Any]:
    """A signed message's fields, after its size, form and sender; not its signature. Raises PolicyError."""
    check_length(data, name, sites, f"the {name} message of site {u}")
    return open_envelope(data, name, u, str(u))


def open_signed(data: bytes, name: str, transcript: bytes, member: Member, sites: int) -> Any:
    """The body of a signed message of `member`, its length checked first. Raises PolicyError that names the site."""
    check_length(data, name, sites, f"the {name} message of site {member.name}")
    return open_message(data, name, member.number, transcript, member.sign, member.name)


def check_length(data: bytes, name: str, sites: int, what: str) -> None:
    """Raise PolicyError if `data` is longer than a message of this kind can be."""
    if len(data) > max_bytes(name, sites):
        raise PolicyError(f"{what} has {len(data)} bytes; at most {max_bytes(name, sites)}")


def read_proposal(data: bytes, sites: int) -> Proposal:
    """M0. Raises PolicyError for any other form."""
    what = "the proposal (M0)"
    check_length(data, "M0", sites, what)
    fields = ("attempt", "cohort", "config", "layout", "purpose", "round", "state", "tensors")
    value = read_object(_parse(data, what), fields, what)
    cohort = []
    for item in read_list(value["cohort"], sites, f"the cohort of {what}"):
        pair = read_list(item, 2, f"a cohort entry of {what}", exactly=True)
        cohort.append(
            (read_int(pair[0], 1, sites, f"a site of {what}"), read_hex(pair[1], HASH_BYTES, f"a base of {what}"))
        )
    _rising([u for u, _ in cohort], f"the cohort of {what}")
    tensors = read_tensors(value["tensors"], MAX_CANON_BYTES, what)
    if type(value["purpose"]) is not str:
        raise PolicyError(f"the purpose of {what} is not text")
    return Proposal(
        read_int(value["attempt"], 0, 1 << 53, f"the attempt of {what}"),
        tuple(cohort),
        read_hex(value["config"], HASH_BYTES, f"the config of {what}"),
        read_hex(value["layout"], HASH_BYTES, f"the layout of {what}"),
        value["purpose"],
        read_int(value["round"], 0, 1 << 53, f"the round of {what}"),
        read_hex(value["state"], HASH_BYTES, f"the state of {what}"),
        tensors,
    )


def read_tensors(value: Any, most: int, what: str) -> tuple[tuple[int, int], ...]:
    """(bits, lanes) of at most `most` tensors, as M0 and READY name them. PolicyError for any other form."""
    tensors = []
    for item in read_list(value, most, f"the tensors of {what}"):
        bits, lanes = read_list(item, 2, f"a tensor of {what}", exactly=True)
        refuse_lane_bits(read_int(bits, 0, 64, f"the bits of {what}"), what)
        tensors.append((bits, read_int(lanes, 0, (1 << 53) - 1, f"the lanes of {what}")))
    return tuple(tensors)


def read_keys(body: Any, who: str) -> Keys:
    """The body of M1. Raises PolicyError for any other form, or one key in both places."""
    what = f"the M1 message of site {who}"
    value = read_object(body, ("chan", "left_s", "mask"), what)
    chan, mask = (read_hex(value[name], KEY_BYTES, f"the {name} key of site {who}") for name in ("chan", "mask"))
    if chan == mask:
        raise PolicyError(f"site {who} uses one key for two purposes")
    return Keys(chan, mask, read_int(value["left_s"], -1, _HINT_LIMIT, f"left_s in {what}"))


def read_shares(body: Any, place: int, count: int, who: str) -> Shares:
    """The body of M2 of the site at `place` (from 0) among the `count` sites of U1."""
    what = f"the M2 message of site {who}"
    value = read_object(body, ("commit", "group", "hash_a", "hash_b", "sealed"), what)
    lists = [
        tuple(
            read_hex(item, HASH_BYTES, f"{name} in {what}")
            for item in read_list(value[name], count, what, exactly=True)
        )
        for name in ("hash_a", "hash_b")
    ]
    sealed = _sealed(value["sealed"], place, count, SHARES_BYTES + SEAL_BYTES, what)
    commit, group = (read_hex(value[name], HASH_BYTES, f"{name} in {what}") for name in ("commit", "group"))
    return Shares(commit, group, lists[0], lists[1], sealed)


def read_masked(body: Any, who: str) -> Masked:
    """The body of M3."""
    what = f"the M3 message of site {who}"
    value = read_object(body, ("tag", "vector"), what)
    return Masked(read_hex(value["tag"], TAG_BYTES, f"the tag in {what}"), read_hex(value["vector"], HASH_BYTES, what))


def read_survivors(data: bytes, sites: int) -> Survivors:
    """The relay's M4: a rising list of site numbers and Tree(Y)."""
    what = "the relay's list of survivors (M4)"
    check_length(data, "M4r", sites, what)
    value = read_object(_parse(data, what), ("sum", "u3"), what)
    return Survivors(read_hex(value["sum"], HASH_BYTES, f"the sum in {what}"), _sites(value["u3"], sites, what))


def read_sites(data: bytes, sites: int, name: str) -> tuple[int, ...]:
    """The relay's U1 or U2: a rising list of site numbers. Raises PolicyError for any other form."""
    what = f"the relay's set {name}"
    check_length(data, name, sites, what)
    return _sites(_parse(data, what), sites, what)


def read_unmask(body: Any, place: int, count: int, secrets: int, who: str) -> Unmask:
    """The body of M5 of the site at `place` (from 0) among `count` sites of U3; a box holds `secrets` shares."""
    what = f"the M5 message of site {who}"
    value = read_object(body, ("sealed",), what)
    return Unmask(_sealed(value["sealed"], place, count, SHARE_BYTES * secrets + SEAL_BYTES, what))


def read_result(body: Any, sites: int, who: str) -> Result:
    """The body of M6."""
    what = f"the M6 message of site {who}"
    value = read_object(body, ("state", "sum", "u3"), what)
    state = read_hex(value["state"], HASH_BYTES, f"the state in {what}")
    sum_ = b"" if value["sum"] == "" else read_hex(value["sum"], HASH_BYTES, f"the sum in {what}")
    return Result(state, sum_, _sites(value["u3"], sites, what))


def read_empty(body: Any, name: str, who: str) -> None:
    """The body {} of M4. Raises PolicyError for anything else under the signature."""
    read_object(body, (), f"the {name} message of site {who}")


# --- fields; also those of catch_up_messages.py ---


def _parse(data: bytes, what: str) -> Any:
    try:
        return parse_canon(data)
    except ValueError as error:
        raise PolicyError(f"{what} is malformed: {error}") from None


def read_object(value: Any, fields: Sequence[str], what: str) -> Mapping[str, Any]:
    """The fields of an object, exactly `fields`. Raises PolicyError."""
    if not isinstance(value, dict) or sorted(value) != list(fields):
        raise PolicyError(f"{what} does not have its fields ({', '.join(fields) or 'none'})")
    return value


def read_list(value: Any, most: int, what: str, *, exactly: bool = False) -> list[Any]:
    """A list of at most, or exactly, `most` items. Raises PolicyError."""
    if not isinstance(value, list) or len(value) > most or (exactly and len(value) != most):
        raise PolicyError(f"{what} is not a list of {'' if exactly else 'at most '}{most}")
    return value


def read_int(value: Any, low: int, high: int, what: str) -> int:
    """A whole number. Raises PolicyError."""
    if type(value) is not int or not low <= value <= high:
        raise PolicyError(f"{what} is not a whole number from {low} to {high}")
    return value


def read_hex(value: Any, nbytes: int, what: str) -> bytes:
    """Exactly `nbytes` bytes in lower-case hex. Raises PolicyError."""
    found = b""
    if type(value) is str and len(value) == 2 * nbytes:
        with suppress(ValueError):
            found = bytes.fromhex(value)
    if found.hex() != value:
        raise PolicyError(f"{what} is not {nbytes} bytes in lower-case hex")
    return found


def _sealed(value: Any, place: int, count: int, nbytes: int, what: str) -> tuple[bytes, ...]:
    """One box of `nbytes` per site, and nothing at the sender's own place."""
    boxes = read_list(value, count, f"sealed in {what}", exactly=True)
    return tuple(read_hex(box, 0 if i == place else nbytes, f"a box in {what}") for i, box in enumerate(boxes))


def _sites(value: Any, sites: int, what: str) -> tuple[int, ...]:
    found = [read_int(u, 1, sites, f"a site in {what}") for u in read_list(value, sites, f"u3 in {what}")]
    _rising(found, f"u3 in {what}")
    return tuple(found)


def _rising(numbers: Sequence[int], what: str) -> None:
    if any(a >= b for a, b in pairwise(numbers)):
        raise PolicyError(f"{what} names a site twice or out of order")
