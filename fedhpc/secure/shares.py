"""Shamir's secret sharing (1979) over the prime field of p = 2^256 − 189 (docs/protocol.md section 2).

The secret is the value at 0 of a polynomial of degree τ − 1; site v holds the value at v. Any τ shares give the secret,
fewer say nothing about it. Every number is 32 bytes, little-endian.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from fedhpc.errors import PolicyError

PRIME = 2**256 - 189
SHARE_BYTES = 32

Draw = Callable[[int], bytes]  # n -> n random bytes; the operating system's, and a fixed stream in test vectors only


def draw_scalar(draw: Draw = os.urandom) -> bytes:
    """A uniform element of the field [32]; values from p on are redrawn, so that none is more likely."""
    while True:
        value = draw(SHARE_BYTES)
        if len(value) != SHARE_BYTES:
            raise ValueError(f"the source of randomness gave {len(value)} bytes instead of {SHARE_BYTES}")
        if int.from_bytes(value, "little") < PRIME:
            return value


def share(secret: bytes, threshold: int, places: Sequence[int], draw: Draw = os.urandom) -> list[bytes]:
    """The share of `secret` [32] for each of `places`, in their order [32 each]; `threshold` of them give it back.

    Raises ValueError for a secret outside the field, places that are 0 or repeated, or fewer places than the threshold.
    """
    _check_places(places)
    if not 1 <= threshold <= len(places):
        raise ValueError(f"threshold {threshold} with {len(places)} places")
    coefficients = [_number(secret), *(_number(draw_scalar(draw)) for _ in range(threshold - 1))]
    found = []
    for place in places:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * place + coefficient) % PRIME
        found.append(value.to_bytes(SHARE_BYTES, "little"))
    return found


def reconstruct(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret [32] from exactly `threshold` shares by place.

    Whether it is the right one is for the caller to check against a commitment: Shamir itself cannot tell. Raises
    PolicyError for another number of shares, a place of 0, a share of another length or outside the field.
    """
    if len(shares) != threshold:
        raise PolicyError(f"{len(shares)} shares, and {threshold} are needed")
    places = tuple(sorted(shares))
    try:
        _check_places(places)
        numbers = [_number(shares[place]) for place in places]
    except ValueError as error:
        raise PolicyError(f"bad share: {error}") from None
    secret = sum(weight * number for weight, number in zip(_weights_at_zero(places), numbers, strict=True)) % PRIME
    return secret.to_bytes(SHARE_BYTES, "little")


@lru_cache(maxsize=256)
def _weights_at_zero(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights of `places` for the value at 0. Public numbers; all secrets of an attempt share them."""
    weights = []
    for own in places:
        above, below = 1, 1
        for other in places:
            if other != own:
                above = above * other % PRIME
                below = below * (other - own) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)


def _number(value: bytes) -> int:
    if len(value) != SHARE_BYTES:
        raise ValueError(f"{len(value)} bytes instead of {SHARE_BYTES}")
    number = int.from_bytes(value, "little")
    if number >= PRIME:
        raise ValueError("a value outside the field")
    return number


def _check_places(places: Sequence[int]) -> None:
    if any(not 1 <= place < 1 << 16 for place in places):
        raise ValueError("a place must be a site number; the place 0 is the secret itself")
    if len(set(places)) != len(places):
        raise ValueError("two shares of one place")
