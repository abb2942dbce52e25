"""M2: a site deals shares (Shamir 1979) of its two secrets and takes those dealt to it (docs/protocol.md section 4)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.attempt_file import AttemptSecrets
from fedhpc.secure.message_kinds import SHARES_BYTES
from fedhpc.secure.messages import Shares
from fedhpc.secure.sealing import seal, unseal
from fedhpc.secure.shares import SHARE_BYTES, Draw, share
from fedhpc.secure.transcript import hash_parts, u16


@dataclass(frozen=True)
class Dealt:
    """What one site dealt to this one: its shares of b and a, and c [32 each]."""

    b: bytes
    a: bytes
    c: bytes

    def __repr__(self) -> str:
        return "Dealt(<private>)"


def deal(
    me: int,
    secrets: AttemptSecrets,
    t1: bytes,
    u1: Sequence[int],
    threshold: int,
    boxes: Mapping[int, bytes],
    draw: Draw,
) -> tuple[Dealt, Shares]:
    """This site's own shares, and the body of its M2. `boxes`: the key of boxes to every other site of U1."""
    of_b = dict(zip(u1, share(secrets.self_, threshold, u1, draw), strict=True))
    of_a = dict(zip(u1, share(secrets.mask, threshold, u1, draw), strict=True))
    body = Shares(
        commit=commitment(t1, me, secrets.self_),
        group=group_hash(t1, me, secrets.group),
        hash_a=tuple(share_hash(labels.HASH_SHARE_A, t1, me, v, of_a[v]) for v in u1),
        hash_b=tuple(share_hash(labels.HASH_SHARE_B, t1, me, v, of_b[v]) for v in u1),
        sealed=tuple(
            b"" if v == me else seal(boxes[v], labels.SEAL_SHARES, t1, of_b[v] + of_a[v] + secrets.group) for v in u1
        ),
    )
    return Dealt(of_b[me], of_a[me], secrets.group), body


def take(
    shares: Shares, t1: bytes, dealer: int, me: int, place: int, box: bytes | None, own: Dealt | None, who: str
) -> Dealt:
    """What `dealer` dealt to this site, which is at `place` of U1; opened with the key `box`, or this site's `own`.

    Raises PolicyError that names the dealer `who` if the box does not open or holds something else than was hashed.
    """
    if own is None:
        assert box is not None
        plain = unseal(box, labels.SEAL_SHARES, t1, shares.sealed[place], SHARES_BYTES, who)
        own = Dealt(plain[:SHARE_BYTES], plain[SHARE_BYTES : 2 * SHARE_BYTES], plain[2 * SHARE_BYTES :])
    good = (
        hmac.compare_digest(share_hash(labels.HASH_SHARE_B, t1, dealer, me, own.b), shares.hash_b[place]),
        hmac.compare_digest(share_hash(labels.HASH_SHARE_A, t1, dealer, me, own.a), shares.hash_a[place]),
        hmac.compare_digest(group_hash(t1, dealer, own.c), shares.group),
    )
    if not all(good):
        raise PolicyError(
            f"site {who} sealed other shares for this site than it announced", "leave it out of the next attempt"
        )
    return own


def commitment(t1: bytes, dealer: int, b: bytes) -> bytes:
    """H("self", T1, u16(u), b_u) [32]."""
    return hash_parts(labels.HASH_SELF, t1, u16(dealer), b)


def group_hash(t1: bytes, dealer: int, c: bytes) -> bytes:
    """H("group", T1, u16(u), c_u) [32]."""
    return hash_parts(labels.HASH_GROUP, t1, u16(dealer), c)


def share_hash(kind: bytes, t1: bytes, dealer: int, holder: int, value: bytes) -> bytes:
    """H("share-a" or "share-b", T1, u16(u), u16(v), share) [32]."""
    return hash_parts(kind, t1, u16(dealer), u16(holder), value)
