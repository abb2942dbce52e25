"""What goes from the relay's store when it is no longer needed."""

from __future__ import annotations

from functools import partial
from operator import eq

from fedhpc.exchange.objects import ObjectName
from fedhpc.relay.objects import SUM, VECTOR
from fedhpc.relay.store import Store

AttemptName = tuple[str, int, int]


def drop_large(store: Store, config: str, round_: int, attempt: int | None, *, also_sum: bool = True) -> None:
    """The vectors, and the sum, of an attempt or (None) of all attempts of a round."""

    def goes(name: ObjectName) -> bool:
        here = name.config == config and name.round == round_ and attempt in (None, name.attempt)
        return here and (name.kind == VECTOR or (also_sum and name.name == SUM))

    store.drop(goes)


def drop_messages(store: Store, where: AttemptName, *, answered: bool) -> None:
    """All of an old attempt but what says which set the round opens over, and that it was given up."""
    kept = {"NEXT", "M0", "M4r", "M5"} if answered else {"NEXT"}
    if any(stored.name.kind not in kept for stored in store.list(where)):
        store.drop(lambda name: name.attempt_name == where and name.kind not in kept)


def drop_ready(store: Store, lobby: AttemptName, site: int) -> None:
    """READY and LEAVE of a site that leaves, so that it can be ready again with the same words.

    READY first: who is killed in between finds LEAVE, and comes here again.
    """
    for kind in ("READY", "LEAVE"):
        store.drop(partial(eq, ObjectName(*lobby, f"{kind}/{site}")))
