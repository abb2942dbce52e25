"""What goes from the relay's store when it is no longer needed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from operator import eq

from fedhpc.relay.rounds.attempt_objects import SUM, VECTOR
from fedhpc.relay.store.store import Store
from fedhpc.wire.object_names import ObjectName

AttemptName = tuple[str, int, int]


def drop_large(store: Store, config: str, round_: int, attempt: int | None, *, also_sum: bool = True) -> None:
    """The vectors, and the sum, of an attempt or (None) of all attempts of a round."""

    def goes(name: ObjectName) -> bool:
        here = name.config == config and name.round == round_ and attempt in (None, name.attempt)
        return here and (name.kind == VECTOR or (also_sum and name.name == SUM))

    store.drop(goes)


def drop_messages(store: Store, where: AttemptName, answered: Iterable[int]) -> None:
    """All of an old attempt but that it was given up and, if sites answered in it, over which set it did.

    Answers that do not count go first: they cannot be told from the others once the rest has gone.
    """
    bound = set(answered)
    kept = {"NEXT", "M0", "M4", "M4r", "M5"} if bound else {"NEXT"}
    names = [stored.name for stored in store.list(where)]
    if bound and any(name.kind == "M5" and name.owner not in bound for name in names):
        store.drop(lambda name: name.attempt_name == where and name.kind == "M5" and name.owner not in bound)
    if any(name.kind not in kept for name in names):
        store.drop(lambda name: name.attempt_name == where and name.kind not in kept)


def drop_ready(store: Store, lobby: AttemptName, site: int) -> None:
    """READY and LEAVE of a site that leaves, so that it can be ready again with the same words.

    READY first: who is killed in between finds LEAVE, and comes here again.
    """
    for kind in ("READY", "LEAVE"):
        store.drop(partial(eq, ObjectName(*lobby, f"{kind}/{site}")))
