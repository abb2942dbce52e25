"""Log records say where they come from and hold no arrays and no keys."""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedhpc.app.logs import JsonLines, current_round, rank_logs
from fedhpc.errors import ConfigError, StorageError

log = logging.getLogger("fedhpc.somewhere")
SECRET = b"\x07canary-key\x07"


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.delenv("FEDHPC_LOG_RANKS", raising=False)
    token = current_round.set(None)
    yield
    current_round.reset(token)


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_warning_says_round_site_rank_and_host(tmp_path, capsys):
    with rank_logs(tmp_path, site="basel", rank=2):
        log.warning("first")
        current_round.set(12)
        log.warning("late by %d s", 3)
        log.info("not for people")
    host = socket.gethostname().partition(".")[0]
    assert capsys.readouterr().err.splitlines() == [
        f"- basel:2 {host} WARNING fedhpc.somewhere: first",
        f"12 basel:2 {host} WARNING fedhpc.somewhere: late by 3 s",
    ]


@pytest.mark.parametrize(("show", "verbose", "shown"), [(1, 1, True), (1, 0, False), (0, 1, False), (0, 0, False)])
def test_info_is_for_the_showing_rank_when_asked(tmp_path, capsys, show, verbose, shown):
    with rank_logs(tmp_path, site="a", rank=0, show=bool(show), verbose=bool(verbose)):
        log.info("hello")
        logging.getLogger("other").info("chatter")
        log.info("on the terminal already", extra={"shown": True})
    assert ("hello" in capsys.readouterr().err) == shown


def test_leaders_write_json_lines_and_others_do_not(tmp_path):
    for rank in (0, 1):
        with rank_logs(tmp_path, site="a", rank=rank):
            log.info("from %d", rank)
            log.debug("detail")
    (entry,) = entries(tmp_path / "log.jsonl")
    assert entry.pop("time").endswith("+00:00")
    host = socket.gethostname().partition(".")[0]
    assert entry == {"level": "INFO", "round": None, "site": "a", "rank": 0, "host": host} | {
        "logger": "fedhpc.somewhere",
        "message": "from 0",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_all_ranks_write_everything_when_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHPC_LOG_RANKS", "all")
    for rank in (0, 3):
        with rank_logs(tmp_path, site="a", rank=rank):
            log.debug("detail")
    assert [e["message"] for e in entries(tmp_path / "log.jsonl")] == ["detail"]
    assert [e["rank"] for e in entries(tmp_path / "log.rank-3.jsonl")] == [3]


def test_an_unknown_choice_of_ranks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHPC_LOG_RANKS", "1")
    with pytest.raises(ConfigError, match="FEDHPC_LOG_RANKS") as raised, rank_logs(tmp_path, site="a", rank=0):
        pass
    assert "leaders, all" in raised.value.hint


@dataclass
class Holder:
    name: str
    key: bytes


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("%s", (SECRET,)),
        ("%r", (bytearray(SECRET),)),
        ("%s", (memoryview(SECRET),)),
        ("%s", (np.frombuffer(SECRET, np.uint8),)),
        ("%s", (np.array(7.25),)),
        ("%d bytes", (SECRET,)),
        ("%s", ([1, {"k": (SECRET,)}],)),
        ("%s", ({SECRET: 1, "more": 2},)),
        ("%(k)s", ({"k": SECRET, "j": 1},)),
        ("%s", (Holder("h", SECRET),)),
        ("%s", (ValueError("bad key", SECRET),)),
        ("%s", (KeyError(SECRET),)),
        ("too few", (SECRET,)),
        (SECRET, ()),
        (np.frombuffer(SECRET, np.uint8), ()),
    ],
)
def test_bytes_and_arrays_never_reach_a_log(tmp_path, capsys, message, args):
    with rank_logs(tmp_path, site="a", rank=0):
        log.getChild("deep").warning(message, *args)
    written = (tmp_path / "log.jsonl").read_text() + capsys.readouterr().err
    assert written.count("<redacted>") == 2
    assert "canary" not in written
    assert "99, " not in written  # the bytes as a list of numbers
    assert "7.25" not in written


def test_plain_arguments_stay_as_they_are(tmp_path):
    with rank_logs(tmp_path, site="a", rank=0):
        log.warning("%s %.2f %d %s %s", "x", np.float32(0.5), np.int64(3), Path("/p"), OSError(2, "gone"))
    assert entries(tmp_path / "log.jsonl")[0]["message"] == "x 0.50 3 /p [Errno 2] gone"


def test_a_message_stays_on_its_line(tmp_path, capsys):
    with rank_logs(tmp_path, site="a", rank=0):
        log.warning("relay says %s", "\x1b[2J\n12 b:0 node WARNING fake")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_an_exception_is_kept(tmp_path, capsys):
    with rank_logs(tmp_path, site="a", rank=0):
        try:
            raise RuntimeError("broken link")
        except RuntimeError:
            log.exception("failed")
    assert "RuntimeError: broken link" in entries(tmp_path / "log.jsonl")[0]["exception"]
    assert "RuntimeError: broken link" in capsys.readouterr().err


def test_logging_is_put_back(tmp_path, monkeypatch):
    root, ours = logging.getLogger(), logging.getLogger("fedhpc")
    monkeypatch.setattr(root, "level", logging.CRITICAL)
    monkeypatch.setattr(ours, "level", logging.ERROR)
    before = (root.handlers[:], root.level, ours.level)
    with rank_logs(tmp_path, site="a", rank=0):
        assert root.handlers != before[0]
    assert (root.handlers, root.level, ours.level) == before


def test_json_lines_cuts_a_long_torn_tail(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a":1}\n' + b"x" * 200_000)
    lines = JsonLines(path)
    lines.append({"b": 2})
    lines.close()
    lines.close()
    assert entries(path) == [{"a": 1}, {"b": 2}]


def test_json_lines_refuses_nan_and_directories(tmp_path):
    with pytest.raises(StorageError, match="cannot open"):
        JsonLines(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        JsonLines(tmp_path / "x").append({"a": float("nan")})
