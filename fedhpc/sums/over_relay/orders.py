"""What the ranks of a site do in a round over the relay, as the leader asks for it: hide and upload, fetch and open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from fedhpc.errors import InterruptedRun, PolicyError
from fedhpc.mpi.collectives import Group
from fedhpc.secure.keys import KEY_BYTES
from fedhpc.secure.opening import Streams
from fedhpc.secure.suite import Suite
from fedhpc.secure.tag import TAG_BYTES, Tag, tag_from_bytes
from fedhpc.secure.transcript import u16, u64
from fedhpc.sums.over_relay.exchange import TooLateError
from fedhpc.sums.streams import streams_from_bytes, streams_to_bytes
from fedhpc.wire.object_names import ObjectName


class Order:
    """The first byte of what a leader tells the other ranks of its site."""

    HIDE, OPEN, DONE, KEPT, OVER, STOP, TAKE = b"H", b"O", b"D", b"K", b"X", b"S", b"T"


def stop_site(site: Group, stopped: InterruptedRun) -> NoReturn:
    """The leader leaves, and every rank of its `site` with it: they await its order. Leaders only."""
    site.await_bytes(Order.STOP + stopped.what.encode())
    raise InterruptedRun(stopped.what, agreed=True) from None


def end_if_stopped(word: bytes) -> None:
    """Raise InterruptedRun, as on every rank of the site, if the leader leaves."""
    if word[:1] == Order.STOP:
        raise InterruptedRun(word[1:].decode(), agreed=True)


@dataclass(frozen=True)
class HideOrder:
    """Hide this rank's part of the vector, and send it."""

    attempt: int
    resume: bool  # whether an earlier job may have sent some of it
    tag_key: bytes = field(repr=False)  # [32]
    streams: Sequence[tuple[bytes, int]] = field(repr=False)  # (mask key [32], ±1); empty: nothing is hidden

    def to_bytes(self) -> bytes:
        """As the leader tells it to the other ranks of its site."""
        head = Order.HIDE + u64(self.attempt) + bytes([self.resume])
        return head + self.tag_key + streams_to_bytes(self.streams)

    @classmethod
    def from_bytes(cls, data: bytes) -> HideOrder:
        """What `to_bytes` was made from."""
        attempt, rest = _attempt(data)
        resume, rest = bool(rest[0]), rest[1:]
        return cls(attempt, resume, rest[:KEY_BYTES], streams_from_bytes(rest[KEY_BYTES:]))


@dataclass(frozen=True)
class OpenOrder:
    """Fetch this rank's part of the sum, and open it."""

    attempt: int
    tag_key: bytes = field(repr=False)  # [32]
    streams: Sequence[tuple[bytes, int]] = field(repr=False)  # what to take away: (mask key [32], ±1)

    def to_bytes(self) -> bytes:
        """As the leader tells it to the other ranks of its site."""
        return Order.OPEN + u64(self.attempt) + self.tag_key + streams_to_bytes(self.streams)

    @classmethod
    def from_bytes(cls, data: bytes) -> OpenOrder:
        """What `to_bytes` was made from."""
        attempt, rest = _attempt(data)
        return cls(attempt, rest[:KEY_BYTES], streams_from_bytes(rest[KEY_BYTES:]))


def _attempt(order: bytes) -> tuple[int, bytes]:
    """The number of the attempt after the first byte, and the rest."""
    return int.from_bytes(order[1:9], "little"), order[9:]


@contextmanager
def silent_without_keys() -> Iterator[None]:
    """Raise TooLateError where the relay has other keys (M1) of this site: an earlier job made and erased them.

    This site then stays silent in that attempt, and joins the next one.
    """
    try:
        yield
    except PolicyError as refused:
        if "other-bytes" not in refused.what:
            raise
        raise TooLateError("other-bytes", "this site has erased its keys of that attempt") from None


CLOSED, CUT_OFF = b"x", b"!"
"""What a rank says in place of its part's tag and digests, which are longer. CLOSED: the relay no longer takes or has
that part. CUT_OFF: this rank could not reach the relay in the time it had left."""


def _all_moved(answers: list[bytes], what: str) -> bool:
    """Whether every rank has moved its part. Raises InterruptedRun, as on every rank, if one was cut off."""
    if CUT_OFF in answers:
        raise InterruptedRun(f"left while its vector was {what}: the relay could not be reached in time", agreed=True)
    return CLOSED not in answers


@dataclass(frozen=True)
class Upload:
    """A site's masked vector, its parts at the relay, and the tag of the vector behind it."""

    name: ObjectName
    tree: bytes
    tag: Tag
    data: memoryview | None = None
    """A vector of one block: it is not sent yet, and goes along with M3."""

    @classmethod
    def of(
        cls, name: ObjectName, length: int, answers: list[bytes], data: memoryview | None, suite: Suite
    ) -> Upload | None:
        """From what each rank says of its part of the `length` bytes: tag and digests. None if the set was closed."""
        if not _all_moved(answers, "sent"):
            return None
        tag = sum((tag_from_bytes(a[:TAG_BYTES]) for a in answers), Tag())
        return cls(name, suite.root(length, [a[TAG_BYTES:] for a in answers]), tag, data)


@dataclass(frozen=True)
class SumFetch:
    """The fetched sum: Tree(Y), Tree(X), and the tag of X."""

    hidden_tree: bytes
    plain_tree: bytes  # empty where M6 does not name it
    tag: Tag

    @classmethod
    def of(cls, length: int, answers: list[bytes], suite: Suite, *, names_sum: bool) -> SumFetch | None:
        """From what each rank says of its part of the `length` bytes: its tag, then digests of Y and, with
        `names_sum`, of X.

        None if the relay no longer has the sum.
        """
        if not _all_moved(answers, "fetched"):
            return None
        tag = sum((tag_from_bytes(a[:TAG_BYTES]) for a in answers), Tag())
        digests = [a[TAG_BYTES:] for a in answers]
        if not names_sum:
            return cls(suite.root(length, digests), b"", tag)
        hidden = suite.root(length, [d[: len(d) // 2] for d in digests])
        return cls(hidden, suite.root(length, [d[len(d) // 2 :] for d in digests]), tag)


@dataclass(frozen=True)
class Answer:
    """An opened sum."""

    sum_tree: bytes
    members: tuple[int, ...]
    waited_s: float  # for other sites and the relay
    turns: int  # round trips in line: answers waited for, the upload, the download
    turns_exposed: int  # of those, after the upload and before the download


@dataclass(frozen=True)
class SumResult:
    """What every rank must know of an opened sum."""

    sum_tree: bytes
    members: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """As the leader tells it to the other ranks of its site."""
        return bytes([len(self.sum_tree)]) + self.sum_tree + b"".join(u16(u) for u in self.members)

    @classmethod
    def from_bytes(cls, data: bytes) -> SumResult:
        """What `to_bytes` was made from."""
        end = 1 + data[0]
        numbers = (int.from_bytes(data[i : i + 2], "little") for i in range(end, len(data), 2))
        return cls(data[1:end], tuple(numbers))


Hide = Callable[[int, Streams, bytes, bool], Upload | None]
"""(attempt, mask streams, tag key, resume): all ranks hide and upload. None if the relay had closed the set."""
Open = Callable[[int, Streams, bytes], SumFetch | None]
"""(attempt, streams to take away, tag key): all ranks fetch and open the sum. None if the relay no longer has it."""
