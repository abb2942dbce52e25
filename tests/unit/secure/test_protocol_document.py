"""docs/protocol.md says what the code does, where a machine can compare them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedhpc.secure import labels
from fedhpc.secure.message_kinds import ENVELOPE_BYTES, max_bytes
from fedhpc.secure.thresholds import choose_thresholds
from fedhpc.secure.transcript import MAX_CANON_BYTES

TESTS = Path(__file__).parents[2]
TEXT = (TESTS.parent / "docs" / "protocol.md").read_text(encoding="utf-8")
POINTERS = re.findall(r"→ `(\w+\.json)`((?:[:,] `[\w ]+`)*)", TEXT)


def test_every_test_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:unit|mpi|relay|faults|fuzz)/[\w/]+\.py)`", TEXT))
    assert len(named) > 20
    assert [path for path in sorted(named) if not (TESTS / path).is_file()] == []


def test_it_points_at_every_file_of_vectors() -> None:
    named = set(re.findall(r"`(\w+\.json)`", TEXT))
    assert named == {path.name for path in (TESTS / "vectors").glob("*.json")}


@pytest.mark.parametrize(("file", "keys"), POINTERS)
def test_what_it_points_at_is_in_the_vectors(file: str, keys: str) -> None:
    there = json.loads((TESTS / "vectors" / file).read_text())
    assert set(re.findall(r"`([\w ]+)`", keys)) <= set(there)


def test_every_label_is_in_it() -> None:
    """A second implementation needs every constant that separates one use from another."""
    values = [value for name, value in vars(labels).items() if name.isupper() and not isinstance(value, int)]
    words = {value.decode() if isinstance(value, bytes) else value for value in values}
    missing = [word for word in sorted(words) if f'"{word}"' not in TEXT and f"| {word} |" not in TEXT]
    assert missing == []
    assert "`fedhpc-secagg/3`" in TEXT


def test_the_table_of_thresholds() -> None:
    rows = re.findall(r"^\| (?:N|t / τ / d) \|.*$", TEXT, re.MULTILINE)
    sites, values = ([cell.strip() for cell in row.split("|")[2:-1]] for row in rows)
    for n, expected in zip(map(int, sites), values, strict=True):
        found = choose_thresholds(n)
        assert f"{found.colluders}/{found.threshold}/{found.losses}" == expected


@pytest.mark.parametrize("sites", [3, 10, 100])
def test_the_longest_messages(sites: int) -> None:
    per_site = {"M0": 80, "M2": 368, "M5": 64 * sites + 40, "STATE": 1024 + 8 * sites}
    per_site |= dict.fromkeys(("M4r", "U1", "U2", "M6"), 8) | dict.fromkeys(("M1", "M3", "M4", "NEED", "CONFIG"), 0)
    for name, each in per_site.items():
        tensors = MAX_CANON_BYTES // 2 if name == "M0" else 0
        assert max_bytes(name, sites) == min(MAX_CANON_BYTES, ENVELOPE_BYTES + tensors + sites * each)
    said = "80 for M0 (and 2 MiB for its tensors), 368 for M2, 64·N + 40 for M5, 1024 + 8·N for STATE, 8 for M4 of the"
    assert said in " ".join(TEXT.split())
