"""Bytes of one stream from rank to rank: every rank knows who holds what and who wants it, and they move together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhpc.mpi.collectives import Group

Read = Callable[[int, int, NDArray[np.uint8]], None]
"""(start, stop, into): copy bytes start..stop of the stream, which this rank holds, into `into` [stop - start]."""
Write = Callable[[int, NDArray[np.uint8]], None]
"""(start, data): put `data` where bytes start… of the stream belong at this rank."""


class Transfer(NamedTuple):
    """Bytes start..stop of a stream go from rank `source` to rank `target`."""

    start: int
    stop: int
    source: int
    target: int


def carry(group: Group, transfers: Sequence[Transfer], read: Read, write: Write) -> None:
    """Carry out `transfers`, the same list on every rank of `group`, in one meeting; in none if none crosses ranks.

    A rank needs memory for what it sends and gets. The caller keeps that small by asking for a stretch at a time.
    """
    me = group.rank
    for t in transfers:
        if t.source == t.target == me:
            write(t.start, _read(read, t))
    crossing = [t for t in transfers if t.source != t.target]
    if not crossing:
        return
    leaving = sorted((t for t in crossing if t.source == me), key=lambda t: t.target)
    coming = sorted((t for t in crossing if t.target == me), key=lambda t: t.source)
    sends, receives = [0] * group.size, [0] * group.size
    for t in leaving:
        sends[t.target] += t.stop - t.start
    for t in coming:
        receives[t.source] += t.stop - t.start
    outgoing, incoming = np.empty(sum(sends), np.uint8), np.empty(sum(receives), np.uint8)
    at = 0
    for t in leaving:
        read(t.start, t.stop, outgoing[at : at + t.stop - t.start])
        at += t.stop - t.start
    group.exchange(outgoing, sends, incoming, receives)
    at = 0
    for t in coming:
        write(t.start, incoming[at : at + t.stop - t.start])
        at += t.stop - t.start


def _read(read: Read, transfer: Transfer) -> NDArray[np.uint8]:
    data = np.empty(transfer.stop - transfer.start, np.uint8)
    read(transfer.start, transfer.stop, data)
    return data
