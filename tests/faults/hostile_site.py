"""A real, enrolled site that breaks the rules: `commit(CRIME)` in its process, before it runs as relayed_site.py says.

A site signs what it likes with its own key. Crimes are about round ROUND; all other rounds are honest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import relayed_site
from hostile_relay import OTHER, PICKLE, ROUND

from fedhpc.exchange.https import RelayExchange
from fedhpc.secure.attempt_site import SiteAttempt


def forge(kind: str, change: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """Sign another body in a kind of message."""

    def install() -> None:
        real = SiteAttempt._sign_once

        def sign(self: Any, name: str, transcript: bytes, body: dict[str, Any]) -> bytes:
            if (name, self._m0.round_) == (kind, ROUND):
                change(body)
            return real(self, name, transcript, body)

        SiteAttempt._sign_once = sign  # type: ignore[method-assign]

    return install


def wrong_shares() -> None:
    real = SiteAttempt._own_share
    SiteAttempt._own_share = (  # type: ignore[method-assign]
        lambda self, w: bytes.fromhex(OTHER) if self._m0.round_ == ROUND else real(self, w)
    )


def send_a_pickle() -> None:
    real = RelayExchange.put

    def put(self: Any, round_: int, attempt: int, kind: str, data: bytes, **more: Any) -> None:
        real(self, round_, attempt, kind, PICKLE if (round_, kind) == (ROUND, "M1") else data, **more)

    RelayExchange.put = put  # type: ignore[method-assign]


def poison(value: float) -> Callable[[], None]:
    """One number of the vector is no number, or too large."""

    def values(site: int, seed: int) -> dict[str, Any]:
        made = relayed_site.floats(site, seed)
        made["x"][12345] = value
        return made

    def install() -> None:
        one, (name, _, bound), three = relayed_site.PLAN
        relayed_site.PLAN = (one, (name, values, bound), three)

    return install


def fall_over() -> None:
    """Not a crime: a mistake in the program, where secrets are at hand. Its traceback must not show them."""

    def opening(self: Any, m5s: Any) -> Any:
        secrets = self._secrets
        raise RuntimeError(f"a mistake of the program: {self!r} {secrets!r} {self._plan!r} {self._dealt!r}")

    SiteAttempt.receive_answers = opening  # type: ignore[method-assign]


CRIMES: dict[str, Callable[[], None]] = {
    **{
        f"low-order {key}, {name}": forge("M1", lambda body, key=key, point=point: body.update({key: point.hex()}))
        for key in ("chan", "mask")
        for name, point in (("zero", bytes(32)), ("one", b"\1" + bytes(31)))
    },
    "one key for two": forge("M1", lambda body: body.update(mask=OTHER)),
    "a box for another": forge("M2", lambda body: body["sealed"].__setitem__(0, body["sealed"][1])),
    "another hash": forge("M2", lambda body: body["hash_a"].__setitem__(0, OTHER)),
    "another secret": forge("M2", lambda body: body.update(commit=OTHER)),
    "another tag": forge("M3", lambda body: body.update(tag="01" * 24)),
    "wrong shares": wrong_shares,
    "a pickle for M1": send_a_pickle,
    **{f"poison {value}": poison(value) for value in (np.nan, np.inf, -np.inf, 1e38, 8.01)},
    "a mistake": fall_over,
}
