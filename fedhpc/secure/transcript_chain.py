"""T0 to T3: the chain of hashes that binds each message of an attempt to all that went before (docs/protocol.md 4).

A message signs the last link that its site can know. Keys are derived from links, so two sites that were shown
different messages share no mask.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedhpc.secure import labels
from fedhpc.secure.transcript import hash_parts, u16


def t0(m0: bytes) -> bytes:
    """H("T0", M0) [32]: the proposal."""
    return hash_parts(labels.HASH_T0, m0)


def t1(before: bytes, m1: Mapping[int, bytes]) -> bytes:
    """T1 [32] from T0 and canon(body) of the M1 of each site of U1."""
    return hash_parts(labels.HASH_T1, before, *_listed(m1))


def t2(before: bytes, m2: Mapping[int, bytes]) -> bytes:
    """T2 [32] from T1 and canon(body) of the M2 of each site of U2; in one job there are none."""
    return hash_parts(labels.HASH_T2, before, *_listed(m2))


def t3(before: bytes, m3: Mapping[int, bytes], sum_tree: bytes) -> bytes:
    """T3 [32] from T2, canon(body) of the M3 of each site of U3, and Tree(Y) [32]."""
    return hash_parts(labels.HASH_T3, before, *_listed(m3), sum_tree)


def _listed(bodies: Mapping[int, bytes]) -> list[bytes]:
    """u16(u) and the body, by rising site."""
    return [u16(u) + bodies[u] for u in sorted(bodies)]
