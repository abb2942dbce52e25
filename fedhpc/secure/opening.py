"""M5 to X: checked shares become the secrets that τ sites agreed to open, and those the streams that hide the sum.

Of a site in the sum only the self mask b opens; of a lost one only the mask key a, for the edges that Y still holds
(docs/protocol.md section 4). That is the double masking of Bonawitz et al. (2017).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedhpc.errors import PeersError, PolicyError
from fedhpc.secure import labels
from fedhpc.secure.dealing import commitment, share_hash
from fedhpc.secure.keys import AttemptKey, derive
from fedhpc.secure.messages import Keys, Shares
from fedhpc.secure.sealing import unseal
from fedhpc.secure.shares import SHARE_BYTES, reconstruct
from fedhpc.secure.tag import Tag
from fedhpc.secure.thresholds import neighbours

Streams = tuple[tuple[bytes, int], ...]  # (mask key [32], sign)


@dataclass(frozen=True)
class Opening:
    """What turns Y into X: streams to add with their signs, and the tag that X must then have."""

    streams: Streams
    tag_key: bytes
    tag: Tag

    def __repr__(self) -> str:
        return f"Opening({len(self.streams)} streams)"


class Pools:
    """Good shares of one secret per site of U2: of b for a site in the sum, of a for a lost one."""

    def __init__(self, t1: bytes, u1: Sequence[int], u3: Sequence[int], shares: Mapping[int, Shares]) -> None:
        self._t1 = t1
        self._places = {u: i for i, u in enumerate(u1)}
        self._u3 = frozenset(u3)
        self._shares = shares
        self._good: dict[int, dict[int, bytes]] = {w: {} for w in shares}

    def add(self, holder: int, plain: bytes) -> list[int]:
        """Take the joined shares [32·|U2|] that `holder` sent; gives the sites whose share is not the one dealt."""
        bad = []
        for i, (w, dealt) in enumerate(self._shares.items()):
            value = plain[i * SHARE_BYTES : (i + 1) * SHARE_BYTES]
            kind, hashes = (labels.HASH_SHARE_B, dealt.hash_b) if w in self._u3 else (labels.HASH_SHARE_A, dealt.hash_a)
            if hmac.compare_digest(share_hash(kind, self._t1, w, holder, value), hashes[self._places[holder]]):
                self._good[w][holder] = value
            else:
                bad.append(w)
        return bad

    def open(self, threshold: int, keys: Mapping[int, Keys], name: Callable[[int], str]) -> dict[int, bytes]:
        """b of every site in the sum and a of every lost one [32 each].

        Raises PeersError while a secret has fewer than `threshold` good shares, and PolicyError that names the dealer
        of shares that give something else than it announced.
        """
        short = [name(w) for w, good in self._good.items() if len(good) < threshold]
        if short:
            fewest = min(len(good) for good in self._good.values())
            raise PeersError(
                f"{fewest} of the {threshold} shares needed to open the sum so far (for site {short[0]})",
                "more sites must answer; otherwise the relay starts a new attempt",
            )
        found = {}
        for w, good in self._good.items():
            secret = reconstruct({v: good[v] for v in sorted(good)[:threshold]}, threshold)
            if w in self._u3:
                right = hmac.compare_digest(commitment(self._t1, w, secret), self._shares[w].commit)
            else:
                right = hmac.compare_digest(AttemptKey(secret).public, keys[w].mask)
            if not right:
                raise PolicyError(
                    f"the shares that site {name(w)} dealt do not give the secret it announced",
                    "it dealt false shares; leave it out of the next attempt",
                )
            found[w] = secret
        return found


def open_box(box: bytes, key: bytes, t3: bytes, secrets: int, who: str) -> bytes:
    """The joined shares [32·secrets] in a box of M5. Raises PolicyError that names the sender."""
    return unseal(key, labels.SEAL_UNMASK, t3, box, SHARE_BYTES * secrets, who)


def near(u: int, u2: Sequence[int], degree: int) -> list[int]:
    """The sites of U2 that `u` shares a mask with."""
    return [u2[place] for place in neighbours(u2.index(u), len(u2), degree)]


def edge_key(t2: bytes, shared: bytes, u: int, v: int) -> bytes:
    """k_edge of two sites [32] from what their mask keys share, X25519 [32]."""
    return derive(t2, shared, labels.KEY_EDGE, min(u, v), max(u, v))


def hidden_streams(
    t2: bytes,
    recovered: Mapping[int, bytes],
    u2: Sequence[int],
    u3: Sequence[int],
    keys: Mapping[int, Keys],
    degree: int,
) -> Streams:
    """What Y holds beside X, with the signs that take it away. `recovered`: b of U3, a of the lost [32 each]."""
    found = [(derive(t2, recovered[w], labels.KEY_SELF, w), -1) for w in u3]
    for g in u2:
        if g in u3:
            continue
        lost = AttemptKey(recovered[g])
        for w in near(g, u2, degree):
            if w in u3:
                found.append((edge_key(t2, lost.shared(keys[w].mask, str(w)), g, w), -1 if w < g else 1))
    return tuple(found)
