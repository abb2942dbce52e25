"""What site and carrier parse from a spool directory, which anybody may have written who can write there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from fedhpc.errors import PeersError, PolicyError
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.spool.folder import flat, note_name, read_attempt_name, read_note_name
from fedhpc.transport.spool.notes import (
    Answer,
    CarrierLife,
    Listed,
    Listing,
    PutNote,
    Receipt,
    Refusal,
    SiteLife,
    Want,
    WatchNote,
    parse_note,
    to_bytes,
)
from fedhpc.wire.object_names import ObjectName

CONFIG, TREE = "ab" * 32, "cd" * 32
REFUSED = Refusal.of(RelayProblem(409, "too-late", "M1 was closed"))
LIFE = CarrierLife("ab" * 8, "transfer1", 77, "boot pid:[4026531836]", 5, 1000, "2026-01-01T00:00:00Z", "")
NOTES: dict[str, list[Any]] = {
    "PutNote": [PutNote("ab" * 8, 1 << 30, TREE)],
    "Receipt": [Receipt("ab" * 8, TREE), Receipt("ab" * 8, TREE, REFUSED)],
    "Want": [Want(0), Want(5)],
    "Answer": [Answer(0), Answer(7, TREE), Answer(0, "", Refusal.of(PolicyError("the relay refused (403 x): no")))],
    "WatchNote": [WatchNote("ab" * 8)],
    "Listing": [
        Listing("abcd", (Listed("M0", 5, TREE), Listed("M1/2", 7, TREE))),
        Listing("abcd", (), "ab" * 8, REFUSED),
    ],
    "SiteLife": [SiteLife(5), SiteLife(6, ended=True)],
    "CarrierLife": [LIFE, replace(LIFE, trouble="the disk is full", ended=True)],
}


def _note(kind: type, data: bytes) -> None:
    note = parse_note(kind, data)
    assert parse_note(kind, to_bytes(note)) == note, "what is read can be written, and is then the same"
    refusal = getattr(note, "refusal", None)
    if refusal is not None:
        error = refusal.error()
        assert isinstance(error, PeersError | PolicyError)
        assert error.what.isprintable()
    for listed in getattr(note, "objects", ()):
        assert "/.." not in flat(listed.name)
        assert listed.length > 0
    for text in ("host", "trouble", "at"):
        assert getattr(note, text, "").isprintable()


def _note_name(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    name = read_note_name(text, CONFIG)
    assert ObjectName.parse(str(name)) == name
    assert note_name(name) == text, "one name for one object"


def _attempt_name(data: bytes) -> None:
    round_, attempt = read_attempt_name(data.decode("utf-8", "surrogateescape"), CONFIG)
    assert f"{round_}.{attempt}".encode() == data


def spool_parsers() -> dict[str, tuple[Any, list[bytes]]]:
    """Name -> (parser that may raise ValueError, seeds)."""
    found: dict[str, tuple[Any, list[bytes]]] = {
        f"spool {name}": (partial(_note, type(notes[0])), [to_bytes(note) for note in notes])
        for name, notes in NOTES.items()
    }
    found["spool note's name"] = _note_name, [b"3.1.M3v.2", b"0.77.B3.1.2", b"1.0.A1"]
    found["spool attempt's name"] = _attempt_name, [b"3.1", b"0.0"]
    return found
