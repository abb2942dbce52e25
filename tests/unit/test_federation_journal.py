"""The ledger's file: durable before anything leaves, chained, locked, and honest about what it could not write."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from secure_fakes import key_of

from fedhpc.errors import PolicyError, StorageError
from fedhpc.federation import journal as journal_module
from fedhpc.federation.journal import FileJournal, MemoryJournal
from fedhpc.secure.ledger import LedgerEntry

ROOT = Path(__file__).parents[2]


def entry(round_: int, **changes: Any) -> LedgerEntry:
    fields = {"purpose": "train", "input": key_of("i", round_), "fingerprint": key_of("f", round_), "cohort": (1, 2, 3)}
    return LedgerEntry(round_, **(fields | changes))


def written(path: Path, rounds: int = 3) -> list[bytes]:
    journal = FileJournal(path)
    for n in range(1, rounds + 1):
        journal.admit(entry(n))
    journal.close()
    return path.read_bytes().splitlines(keepends=True)


def test_entries_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    lines = written(path)
    assert len(lines) == 3
    assert path.stat().st_mode & 0o777 == 0o600
    record = json.loads(lines[0])
    assert record["entry"] == entry(1).as_json()
    journal = FileJournal(path)
    assert (len(journal.ledger), journal.ledger.last_round) == (3, 3)
    assert journal.ledger.head.hex() == json.loads(lines[-1])["head"]
    journal.admit(entry(2))  # a repeat writes nothing
    assert path.read_bytes() == b"".join(lines)
    journal.admit(entry(4))
    journal.close()
    assert path.read_bytes().startswith(b"".join(lines))
    assert len(FileJournal(path).ledger) == 4


def test_rules_hold_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    journal = FileJournal(path)
    for refused in (entry(2, fingerprint=key_of("x")), entry(2, cohort=(1, 2)), entry(9, input=key_of("i", 1))):
        with pytest.raises(PolicyError) as caught:
            journal.admit(refused)
        assert caught.value.exit_code == 77
    assert path.read_bytes() == b"".join(lines)


def test_durable_before_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    calls: list[str] = []
    real_write, real_fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: (calls.append("write"), real_write(fd, data))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd))[1])
    journal = FileJournal(path)
    assert calls == ["fsync"]  # the directory, so that the file's name survives too
    calls.clear()
    journal.admit(entry(1))
    assert calls == ["write", "fsync"]
    calls.clear()
    journal.admit(entry(1))
    assert calls == []
    with pytest.raises(PolicyError):
        journal.admit(entry(1, cohort=(1,)))
    assert calls == []


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    for keep in range(len(lines[2])):  # a kill at any byte of the last line
        path.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
        journal = FileJournal(path)
        assert len(journal.ledger) == 2
        assert path.read_bytes() == b"".join(lines[:2])
        if keep % 40 == 0:
            journal.admit(entry(3))
            assert path.read_bytes() == b"".join(lines)
        journal.close()


def alterations(lines: list[bytes]) -> dict[str, list[bytes]]:
    record = json.loads(lines[1])
    other = json.dumps(record | {"entry": record["entry"] | {"cohort": [1, 2]}}, sort_keys=True, separators=(",", ":"))
    return {
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


@pytest.mark.parametrize("how", alterations([b'{"entry":{},"head":""}'] * 3))
def test_an_altered_line_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    data = b"".join(alterations(lines)[how])
    path.write_bytes(data)
    for _ in range(2):  # the refusal releases the file: a second look says the same
        with pytest.raises(PolicyError, match=r"ledger.jsonl, line [1-4]: ") as caught:
            FileJournal(path)
        assert caught.value.exit_code == 77
    assert path.read_bytes() == data  # kept as evidence
    path.write_bytes(b"".join(lines))
    assert len(FileJournal(path).ledger) == 3


def test_any_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    data = bytearray(b"".join(lines))
    for bit in range(0, 8 * (len(data) - 1), 37):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(PolicyError, match="line"):
            FileJournal(path)
        data[bit // 8] ^= 1 << bit % 8


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = FileJournal(path)
    with pytest.raises(StorageError, match="another run is using") as caught:
        FileJournal(path)
    assert caught.value.exit_code == 74
    program = (
        f"from pathlib import Path\nfrom fedhpc.federation.journal import FileJournal\nFileJournal(Path({str(path)!r}))"
    )
    done = python(program)
    assert "StorageError: another run is using" in done.stderr
    first.close()
    FileJournal(path).close()
    assert python(program).returncode == 0


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "ledger.jsonl", tmp_path):
        with pytest.raises(StorageError, match="cannot use the ledger") as caught:
            FileJournal(path)
        assert caught.value.exit_code == 74


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'unit'}"},
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
from test_federation_journal import entry
from fedhpc.errors import StorageError
from fedhpc.federation.journal import FileJournal
journal = FileJournal(Path({str(path)!r}))
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
    journal = FileJournal(path)  # with space again: the torn line is cut and the round is still free
    assert len(journal.ledger) == 2
    journal.admit(entry(3))
    journal.close()
    assert len(FileJournal(path).ledger) == 3


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_after_a_failed_write_nothing_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path, 2)
    journal = FileJournal(path)
    head = journal.ledger.head

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module.os, call, fail)
        with pytest.raises(StorageError, match=r"cannot write the ledger .*Input/output error"):
            journal.admit(entry(3))
    assert (len(journal.ledger), journal.ledger.head, journal.ledger.round_of(entry(3).input)) == (2, head, None)
    # What is on disk is unknown, so this process admits nothing more, not even a repeat.
    for again in (entry(3), entry(3), entry(4), entry(2)):
        with pytest.raises(StorageError) as caught:
            journal.admit(again)
        assert caught.value.exit_code == 74
    journal.close()
    journal = FileJournal(path)
    journal.admit(entry(3))
    assert len(journal.ledger) == 3


def test_killed_after_admit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    done = python(f"""
import os, signal
from pathlib import Path
from test_federation_journal import entry
from fedhpc.federation.journal import FileJournal
journal = FileJournal(Path({str(path)!r}))
journal.admit(entry(1))
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert done.returncode == -9, done.stderr
    journal = FileJournal(path)
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
