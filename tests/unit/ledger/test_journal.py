"""The ledger's file: durable before anything leaves, chained, locked, and honest about what it could not write.

The first line of each home names the federation; the lines of its rounds follow.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from federation_fakes import journal_in, known
from secure_fakes import key_of

from fedhpc.errors import PolicyError, StorageError
from fedhpc.ledger.journal import FileJournal, MemoryJournal
from fedhpc.secure.ledger import LedgerEntry

ROOT = Path(__file__).parents[3]


def entry(round_: int, **changes: Any) -> LedgerEntry:
    fields = {"purpose": "train", "input": key_of("i", round_), "fingerprint": key_of("f", round_), "cohort": (1, 2, 3)}
    return LedgerEntry(round_, **(fields | changes))


def opened(path: Path) -> FileJournal:
    """The journal of one federation, whose ledger is the file `path`."""
    assert path.name == "ledger.jsonl"
    return journal_in(path.parent)


def written(path: Path, rounds: int = 3) -> list[bytes]:
    journal = opened(path)
    for n in range(1, rounds + 1):
        journal.admit(entry(n))
    journal.close()
    return path.read_bytes().splitlines(keepends=True)


def test_entries_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    lines = written(path)
    assert len(lines) == 4
    assert {p.stat().st_mode & 0o777 for p in (path, path.with_name("ledger.key"))} == {0o600}
    assert json.loads(lines[0])["federation"] == known().as_json()
    record = json.loads(lines[1])
    assert record["entry"] == entry(1, config=known().config).as_json()
    journal = opened(path)
    assert (len(journal.ledger), journal.ledger.last_round) == (3, 3)
    journal.admit(entry(2))  # a repeat writes nothing
    assert path.read_bytes() == b"".join(lines)
    journal.admit(entry(4))
    journal.close()
    assert path.read_bytes().startswith(b"".join(lines))
    assert len(opened(path).ledger) == 4


def test_rules_hold_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    journal = opened(path)
    for refused in (entry(2, fingerprint=key_of("x")), entry(2, cohort=(1, 2)), entry(9, input=key_of("i", 1))):
        with pytest.raises(PolicyError) as caught:
            journal.admit(refused)
        assert caught.value.exit_code == 77
    left = path.read_bytes()
    assert left.startswith(b"".join(lines)), "nothing but what was refused is added"
    refused = [json.loads(line)["refused"] for line in left[len(b"".join(lines)) :].splitlines()]
    assert [(r["round"], r["purpose"]) for r in refused] == [(2, "train"), (2, "train"), (9, "train")]


def test_durable_before_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    calls: list[str] = []
    real_write, real_fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: (calls.append("write"), real_write(fd, data))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd))[1])
    journal = opened(path)
    # The directory, so that the file's name survives too; the key and its name; and the line that names the federation.
    assert calls == ["fsync", "write", "fsync", "fsync", "write", "fsync"]
    calls.clear()
    journal.admit(entry(1))
    assert calls == ["write", "fsync"]
    calls.clear()
    journal.admit(entry(1))
    assert calls == []
    for _ in range(3):
        with pytest.raises(PolicyError):
            journal.admit(entry(1, cohort=(1,)))
    assert calls == ["write", "fsync"]  # what was refused, once


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    for keep in range(len(lines[3])):  # a kill at any byte of the last line
        path.write_bytes(b"".join(lines[:3]) + lines[3][:keep])
        journal = opened(path)
        assert len(journal.ledger) == 2
        assert path.read_bytes() == b"".join(lines[:3])
        if keep % 40 == 0:
            journal.admit(entry(3))
            assert path.read_bytes() == b"".join(lines)
        journal.close()


def alterations(lines: list[bytes]) -> dict[str, list[bytes]]:
    named, *lines = lines
    record = json.loads(lines[1])
    other = json.dumps(record | {"entry": record["entry"] | {"cohort": [1, 2]}}, sort_keys=True, separators=(",", ":"))
    found = {
        "changed": [lines[0], other.encode() + b"\n", lines[2]],
        "removed": [lines[0], lines[2]],
        "first removed": lines[1:],
        "swapped": [lines[1], lines[0], lines[2]],
        "repeated": [lines[0], lines[1], lines[1], lines[2]],
        "emptied": [lines[0], b"\n", lines[2]],
        "spaced": [lines[0], json.dumps(record, sort_keys=True).encode() + b"\n", lines[2]],
        "not json": [lines[0], b"{]\n", lines[2]],
        "not text": [lines[0], b"\xff\n", lines[2]],
        "list": [lines[0], b"[]\n", lines[2]],
        "number": [lines[0], b"5\n", lines[2]],
        "no entry": [lines[0], b'{"head":""}\n', lines[2]],
        "deep": [lines[0], b"[" * 60_000 + b"\n", lines[2]],
        "long": [lines[0], b'"' + b"a" * 70_000 + b'"\n', lines[2]],
        "last changed": [*lines[:2], lines[2].replace(b'"round":3', b'"round":4')],
        "joined": [lines[0].rstrip(b"\n") + lines[1], lines[2]],
    }
    return {how: [named, *spoilt] for how, spoilt in found.items()} | {"federation removed": lines}


@pytest.mark.parametrize("how", alterations([b'{"entry":{},"head":""}'] * 4))
def test_an_altered_line_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    data = b"".join(alterations(lines)[how])
    path.write_bytes(data)
    for _ in range(2):  # the refusal releases the file: a second look says the same
        with pytest.raises(PolicyError, match=r"ledger.jsonl, line [1-5]: ") as caught:
            opened(path)
        assert caught.value.exit_code == 77
    assert path.read_bytes() == data  # kept as evidence
    path.write_bytes(b"".join(lines))
    assert len(opened(path).ledger) == 3


def test_any_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    data = bytearray(b"".join(lines))
    for bit in range(0, 8 * (len(data) - 1), 37):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(PolicyError, match="line"):
            opened(path)
        data[bit // 8] ^= 1 << bit % 8


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = opened(path)
    with pytest.raises(StorageError, match=f"another run is using {tmp_path}/run") as caught:
        opened(path)
    assert caught.value.exit_code == 74
    assert "federation next --again" in caught.value.hint
    program = f"from pathlib import Path\nfrom test_journal import opened\nopened(Path({str(path)!r}))"
    done = python(program)
    assert "StorageError: another run is using" in done.stderr
    first.close()
    opened(path).close()
    assert python(program).returncode == 0


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "home" / "ledger.jsonl").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "home"):
        with pytest.raises(StorageError, match="cannot use ") as caught:
            journal_in(folder)
        assert caught.value.exit_code == 74


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{ROOT / 'tests' / 'fakes'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("room", [0, 1, 200])
def test_a_full_disk(tmp_path: Path, room: int) -> None:
    """RLIMIT_FSIZE stands for the full disk: the third line finds `room` bytes."""
    path = tmp_path / "ledger.jsonl"
    before = b"".join(written(path, 2))
    done = python(f"""
import resource
from pathlib import Path
from test_journal import entry, opened
from fedhpc.errors import StorageError
journal = opened(Path({str(path)!r}))
head = journal.ledger.head
limit = {len(before) + room}
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for again in range(2):
    try:
        journal.admit(entry(3))
    except StorageError as error:
        print(error.exit_code, error.what)
    assert (len(journal.ledger), journal.ledger.head) == (2, head)
    assert journal.ledger.round_of(entry(3).input) is None
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("74 ") == 2
    assert "cannot write the ledger" in done.stdout
    assert path.read_bytes()[: len(before)] == before
    journal = opened(path)  # with space again: the torn line is cut and the round is still free
    assert len(journal.ledger) == 2
    journal.admit(entry(3))
    journal.close()
    assert len(opened(path).ledger) == 3


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_after_a_failed_write_nothing_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path, 2)
    journal = opened(path)
    head = journal.ledger.head

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match=r"cannot write the ledger .*Input/output error"):
            journal.admit(entry(3))
    assert (len(journal.ledger), journal.ledger.head, journal.ledger.round_of(entry(3).input)) == (2, head, None)
    # What is on disk is unknown, so this process admits nothing more, not even a repeat.
    for again in (entry(3), entry(3), entry(4), entry(2)):
        with pytest.raises(StorageError) as caught:
            journal.admit(again)
        assert caught.value.exit_code == 74
    journal.close()
    journal = opened(path)
    journal.admit(entry(3))
    assert len(journal.ledger) == 3


def test_killed_after_admit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    done = python(f"""
import os, signal
from pathlib import Path
from test_journal import entry, opened
journal = opened(Path({str(path)!r}))
journal.admit(entry(1))
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert done.returncode == -9, done.stderr
    journal = opened(path)
    with pytest.raises(PolicyError):
        journal.admit(entry(1, fingerprint=key_of("other")))


def test_memory_journal_keeps_the_rules() -> None:
    journal = MemoryJournal()
    journal.admit(entry(1))
    journal.admit(entry(1))
    assert len(journal.ledger) == 1
    with pytest.raises(PolicyError):
        journal.admit(entry(1, cohort=(1, 2)))
    journal.close()
