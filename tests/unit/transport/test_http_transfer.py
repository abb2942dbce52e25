"""What a transfer does with answers that a real relay gives only in rare moments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fedhpc.errors import PeersError
from fedhpc.secure.suite import SHA256
from fedhpc.transport.gaps import cut, overlap, read_gaps, size_of, without
from fedhpc.transport.https.retry import Clock
from fedhpc.transport.https.transfer import Outgoing
from fedhpc.transport.link_problems import LinkDown, RelayProblem
from fedhpc.wire.object_names import ObjectName

MIB = 1 << 20
NAME = ObjectName("ab" * 32, 1, 1, "M3v/1")


class ScriptedLink:
    """A connection that gives the answers of a script, and remembers what was asked and sent."""

    def __init__(self, answers: list[tuple[int, dict[str, Any]]]) -> None:
        self.answers, self.heads, self.sent = answers, [], bytearray()

    def send_head(self, method: str, path: str, headers: dict[str, str], size: int = 0) -> None:
        self.heads.append((method, headers.get("content-range", "")))

    def send(self, view: memoryview) -> None:
        self.sent += view

    def answered_early(self) -> bool:
        return False

    def response(self, wait_s: float = 0.0) -> Any:
        status, document = self.answers.pop(0)
        return SimpleNamespace(status=status, document=document)

    def read_json(self, response: Any) -> dict[str, Any]:
        return response.document


class ScriptedLinks:
    """One scripted connection; a LinkDown is retried at once."""

    count = 1
    suite = SHA256

    def __init__(self, link: ScriptedLink) -> None:
        self.link = link

    def persist(self, what: str, act: Any, clock: Clock | None = None, *, transfer: bool = False) -> Any:
        while True:
            try:
                return act(self.link)
            except LinkDown:
                continue

    def each(self, pieces: list[Any], work: Any, clock: Clock) -> None:
        for piece in pieces:
            work(piece)


def test_an_upload_that_the_relay_dropped_is_begun_anew() -> None:
    link = ScriptedLink([(404, {}), (404, {}), (202, {})])  # the PUT, the question what is missing, the PUT again
    data = bytes(range(256)) * (2 * MIB // 256)
    prepared: list[int] = []
    links: Any = ScriptedLinks(link)
    Outgoing(links, NAME, 2 * MIB, [(0, MIB)], MIB).write(0, memoryview(data), lambda low, high: prepared.append(low))
    assert link.heads == [("PUT", "bytes 0-1048575/2097152"), ("GET", ""), ("PUT", "bytes 0-1048575/2097152")]
    assert link.sent == data[:MIB] * 2
    assert prepared == [0, MIB]


def test_a_commit_that_does_not_find_all_is_an_error() -> None:
    links: Any = ScriptedLinks(ScriptedLink([(202, {"whole": False})]))
    with pytest.raises(PeersError, match="lost parts"):
        Outgoing(links, NAME, 2 * MIB, [], MIB).commit(bytes(32))


def test_ranges() -> None:
    assert overlap([(0, 4), (6, 9)], [(2, 7)]) == [(2, 4), (6, 7)]
    assert without((0, 9), [(0, 2), (4, 5)]) == [(2, 4), (5, 9)]
    assert without((0, 9), []) == [(0, 9)]
    assert without((3, 9), [(0, 20)]) == []
    assert size_of([(0, 2), (5, 9)]) == 6


@pytest.mark.parametrize("ways", [1, 3, 4])
@pytest.mark.parametrize("end", [1, MIB, 5 * MIB + 1, 300 * MIB])
def test_pieces_cover_all_once_and_grow_smaller(ways: int, end: int) -> None:
    ranges = [(0, end), (400 * MIB, 411 * MIB)]
    pieces = cut(ranges, 64 * MIB, ways)
    assert size_of(pieces) == size_of(ranges)
    joined: list[tuple[int, int]] = []
    for low, high in pieces:
        assert low % MIB == 0
        assert 0 < high - low <= 64 * MIB
        if joined and joined[-1][1] == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    assert joined == ranges
    assert pieces[-1][1] - pieces[-1][0] <= max(MIB, size_of(ranges) // (4 * ways))
    assert len(pieces) <= 16 * ways + 2


@pytest.mark.parametrize(
    "missing", [None, 1, [[1, MIB]], [[MIB, MIB]], [[MIB, 2 * MIB], [0, MIB]], [[-MIB, MIB]], [[0]], [[0.0, 1.0]]]
)
def test_lists_of_missing_parts_that_make_no_sense(missing: Any) -> None:
    with pytest.raises(RelayProblem, match="nonsense"):
        read_gaps({"missing": missing})
