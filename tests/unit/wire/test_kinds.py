"""The table of kinds: what it says is what the documents say, and its rows fit each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedhpc.secure.message_kinds import BY_NAME, ENVELOPE_BYTES, OF_AN_ATTEMPT
from fedhpc.secure.transcript import MAX_CANON_BYTES
from fedhpc.wire import kinds
from fedhpc.wire.kinds import KINDS, PHASES, Carries, Kind, Owner, Place
from fedhpc.wire.object_names import ObjectName

DOCS = Path(__file__).parents[3] / "docs"
CONFIG = "ab" * 32
NUMBERS = {"A": "a", "B": "k"}
WRITTEN_BY = {Owner.RELAY: "relay", Owner.SITE: "site", Owner.SITE_FOR_SITE: "site g for u"}
SITES = {Owner.RELAY: "", Owner.SITE: "/u", Owner.SITE_FOR_SITE: "/g/u"}


def longest(kind: Kind) -> str:
    """The longest object of a kind, in the words of the table of docs/relay-rounds.md."""
    if kind.carries is Carries.VECTOR:
        return "as M0 says"
    message = BY_NAME.get(kind.name)
    if message is None:
        return str(kind.limit)
    terms = [(message.fixed, ""), (message.per_site, "·N"), (message.per_pair, "·N²")]
    return " + ".join([str(ENVELOPE_BYTES), *(f"{n}{of}" for n, of in terms if n)])


def test_the_table_of_the_document_is_this_one() -> None:
    text = (DOCS / "relay-rounds.md").read_text()
    rows = re.findall(r"^\| `(C/[^`]*)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    expected = []
    for kind in KINDS:
        number = f"{{{NUMBERS[kind.name]}}}" if kind.numbered else ""
        name = f"{kind.place.value}/{kind.name}{number}{SITES[kind.owner]}"
        expected.append((name, WRITTEN_BY[kind.owner], kind.signs.value, longest(kind)))
    assert rows == expected


def test_the_phases_of_the_documents_are_these() -> None:
    words = ", ".join(f"`{phase}`" for phase in PHASES)
    said = " ".join((DOCS / "relay-rounds.md").read_text().split())
    *most, last = words.split(", ")
    assert f"`phase` is one of {', '.join(most)}, {last}" in said
    assert f"phase: {{ enum: [{', '.join(PHASES)}] }}" in (DOCS / "relay-openapi.yaml").read_text()
    seen = [kind.phase for kind in KINDS if kind.phase]
    assert sorted(set(seen), key=seen.index) == list(PHASES)


def test_rows_fit_each_other() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert {kind.name for kind in KINDS} >= set(BY_NAME)
    assert tuple(kind.name for kind in kinds.SENT if kind.carries is Carries.MESSAGE) == OF_AN_ATTEMPT
    assert [BY_NAME[kind.name].signs.link for kind in kinds.FORMING] == [0, 1, 2]
    for kind in KINDS:
        assert (kind.senders is None) == (kind.place is not Place.ATTEMPT or kind.owner is Owner.RELAY), kind
        assert kind.carries is Carries.VECTOR or kind.most_bytes(3), kind
        assert not kind.turn or kind.owner is Owner.RELAY, kind
        assert (kind.most_bytes(100) or 0) <= MAX_CANON_BYTES, kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("1/2/M3v/1", kinds.M3V),
        ("1/0/A12", kinds.ANNOUNCED),
        ("0/7/B0/1/2", kinds.BLOCK),
        ("0/7/STATE/1/2", kinds.STATE),
        ("0/0/CONFIG/3", kinds.CONFIG),
        ("1/0/M3v/1", None),
        ("1/2/M3v", None),
        ("1/2/M3v/1/2", None),
        ("1/0/A12/1", None),
        ("1/0/A", None),
        ("0/7/B/1/2", None),
        ("0/0/NEED/1", None),
        ("1/2/M7/1", None),
        ("1/2/NEXT/1", None),
    ],
)
def test_a_name_belongs_to_a_row_or_to_none(path: str, kind: Kind | None) -> None:
    assert kinds.kind_of(ObjectName.parse(f"{CONFIG}/{path}")) is kind


def test_whoever_waits_hears_that_the_relay_has_gone_on() -> None:
    assert all(kinds.is_turn(name) for name in ("NEXT", "DONE", "A1", "A20"))
    assert not any(kinds.is_turn(name) for name in ("NEXT/1", "A", "A1/2", "AB1", "B1", "M0", "Y", "DONE2", ""))


def test_which_attempt_is_announced() -> None:
    names = ("A1", "A20", "A", "A1/2", "B1", "DONE", "NEXT")
    assert [kinds.announced(name) for name in names] == [1, 20, 0, 0, 0, 0, 0]


def test_what_goes_along_with_a_listing() -> None:
    along = {path: kinds.carries(ObjectName.parse(f"{CONFIG}/{path}")) for path in ("1/1/M1/1", "1/1/V/1", "1/1/M3v/1")}
    assert list(along.values()) == [Carries.MESSAGE, Carries.MESSAGE, Carries.VECTOR]
    assert kinds.carries(ObjectName.parse(f"{CONFIG}/0/9/B3/1/2")) is Carries.BLOCK
