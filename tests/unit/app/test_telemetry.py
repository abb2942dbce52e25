"""Records survive kills and resumes; terminals get one line per round and nothing that moves a cursor in a file."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedhpc.app.logs import current_round
from fedhpc.app.telemetry import Telemetry, metric_words, read_metrics, round_line
from fedhpc.errors import DataError, StorageError

RECORD = {
    "metrics": {"loss": 0.5, "accuracy": 0.75, "auc": None},
    "train_loss": 0.4,
    "seconds": {"train": 6.0, "wire": 3.0, "ledger": 0.001, "total": 10.0},
    "bytes_up": 1_500_000,
    "bytes_down": 2_000_000,
    "sites": ["a", "b"],
    "state": "ab",
}


@pytest.fixture(autouse=True)
def _no_round_left_behind():
    token = current_round.set(None)
    yield
    current_round.reset(token)


def telemetry(path: Path, **changes) -> Telemetry:
    return Telemetry(path, **{"site": "a", "site_number": 1, "rank": 0, "show": False, "rounds": 3, **changes})


def lines(*records: dict) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


def test_a_record_is_filled_in_and_read_back(tmp_path):
    with telemetry(tmp_path / "a") as t:
        t.round_done({"round": 1, "mine": [1, 2], **RECORD})
    (record,) = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert (record["version"], record["site"], record["rounds"]) == (1, "a", 3)
    assert record["mine"] == [1, 2]
    assert record["seconds"] == RECORD["seconds"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record["time"])


def test_only_the_leader_writes(tmp_path):
    with telemetry(tmp_path / "a", rank=1) as t:
        t.round_done({"round": 1, **RECORD})
    assert not (tmp_path / "a").exists()


def test_every_record_is_strict_json(tmp_path):
    values = {"nan": float("nan"), "inf": np.float32("inf"), "n": np.int64(3), "x": np.zeros(3), "key": b"secret"}
    with telemetry(tmp_path) as t:
        t.round_done({"round": 1, "metrics": values})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record["metrics"] == {"nan": None, "inf": None, "n": 3, "x": "<redacted>", "key": "<redacted>"}


def test_each_record_is_one_write(tmp_path, monkeypatch):
    written = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: written.append(bytes(data)) or real(file, data))
    with telemetry(tmp_path) as t:
        t.round_done({"round": 1, **RECORD})
        t.round_done({"round": 2, **RECORD})
    ours = [w for w in written if b'"round":' in w]
    assert len(ours) == 2
    assert all(w.endswith(b"\n") and w.count(b"\n") == 1 for w in ours)


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_last_line_is_passed_over_and_cut_off_by_the_next_job(tmp_path, cut):
    with telemetry(tmp_path) as t:
        t.round_done({"round": 1, **RECORD})
        t.round_done({"round": 2, **RECORD})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["round"] for r in read_metrics(path)] == [1]
    with telemetry(tmp_path) as t:
        t.round_done({"round": 2, "again": True})
    records = read_metrics(path)
    assert [r["round"] for r in records] == [1, 2]
    assert records[1]["again"] is True


def test_a_short_write_is_taken_back(tmp_path, monkeypatch, caplog):
    with telemetry(tmp_path) as t:
        t.round_done({"round": 1, **RECORD})
        real = os.write
        monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:20]))
        t.round_done({"round": 2, **RECORD})
        monkeypatch.undo()
        t.round_done({"round": 3, **RECORD})
    assert [r["round"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert "missing from the report" in caplog.text


def test_rounds_that_are_redone_appear_once(tmp_path):
    with telemetry(tmp_path) as t:
        for n in (1, 2, 3):
            t.round_done({"round": n, "job": 1})
    with telemetry(tmp_path) as t:
        t.round_done({"round": 2, "job": 2})
    path = tmp_path / "metrics.jsonl"
    assert [(r["round"], r["job"]) for r in read_metrics(path)] == [(1, 1), (2, 2)]  # 3 belongs to what was given up
    with telemetry(tmp_path) as t:
        t.round_done({"round": 3, "job": 2})
    assert [(r["round"], r["job"]) for r in read_metrics(path)] == [(1, 1), (2, 2), (3, 2)]


def test_metrics_that_a_later_job_summed_again_join_the_rounds_record(tmp_path):
    """It was killed after its checkpoint: the record is there or not, and the next job says the metrics once more."""
    lost = {"round": 2, "metrics": {}, "no_metrics": "not all sites were there to sum them", "again": True}
    told = {"round": 1, "metrics": {"loss": 0.5}, "again": True}
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines({"round": 1, "train_loss": 0.25, **RECORD}, told, lost))
    first, second = read_metrics(path)
    assert (first["metrics"], first["train_loss"], first["seconds"]) == ({"loss": 0.5}, 0.4, RECORD["seconds"])
    assert second["metrics"] == {}
    assert second["no_metrics"] == "not all sites were there to sum them"
    assert round_line({"rounds": 3, **second}) == "round 2/3  no metrics: not all sites were there to sum them"


def test_the_final_record_stands_beside_the_last_round(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(lines({"round": 2}, {"round": 2, "final": True}, {"round": 2, "final": True, "again": 1}))
    assert [(r.get("final"), r.get("again")) for r in read_metrics(path)] == [(None, None), (True, 1)]


@pytest.mark.parametrize(
    "bad",
    [
        b"{\n",
        b"[1]\n",
        b'{"round": 1.5}\n',
        b'{"round": true}\n',
        b'{"round": 1, "x": NaN}\n',
        b"\xff\n",
        b"\n",
        b"[" * 100000 + b"\n",
        b'{"round": 1, "version": 2}\n',
    ],
)
def test_a_whole_line_that_is_no_record_is_refused_with_its_number(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines({"round": 1}) + bad + lines({"round": 2}))
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 "):
        read_metrics(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_the_line_of_a_round():
    line = round_line({"round": 2, "rounds": 10, **RECORD})
    assert line == (
        "round  2/10  loss 0.5000  accuracy 0.7500  auc n/a  10.0 s  1.50 MB up  2.00 MB down  train 60% wire 30%"
    )
    assert round_line({"round": 3, "rounds": 3, "final": True, "metrics": {"loss": 1}}) == "final 3/3  loss 1.0000"
    assert round_line({"round": 1, "metrics": [], "seconds": {"total": "x"}, "bytes_up": True}) == "round 1/?"


def test_a_half_width_stands_behind_its_value_where_it_is_wide():
    def shown(auc, half_width, **more):
        return round_line({"round": 1, "metrics": {"loss": 0.5, "auc": auc, "auc_half_width": half_width, **more}})

    assert shown(0.74364, 0.00421) == "round 1/?  loss 0.5000  auc 0.7436 ± 0.0043"
    assert shown(0.7436, 0.001) == "round 1/?  loss 0.5000  auc 0.7436"
    assert shown(0.5, 0.5, average_precision=0.1, average_precision_half_width=0.2).endswith("auc 0.5000 ± 0.5000")
    assert shown(None, None).endswith("auc n/a")
    assert shown(0.7, "wide").endswith("auc 0.7000")
    words = metric_words({"a": 0.25, "a_half_width": 0.1, "b_half_width": 0.2})
    assert words == {"a": "a 0.2500 ± 0.1000", "b_half_width": "b_half_width 0.2000"}


@pytest.mark.parametrize("half_width", [0.0010001, 0.00421, 0.01999999, 0.1])
def test_the_interval_that_is_shown_holds_the_one_that_is_proven(half_width):
    for value in (0.74364, 0.74365, 0.74355001, 0.5):
        middle, half = metric_words({"auc": value, "auc_half_width": half_width})["auc"][4:].split(" ± ")
        assert float(middle) - float(half) <= value - half_width + 1e-12
        assert float(middle) + float(half) >= value + half_width - 1e-12


def test_without_held_out_rows_a_line_has_the_training_loss():
    nothing = {"loss": None, "accuracy": None, "auc": None, "auc_half_width": None}
    record = {"round": 1, "rounds": 2, "metrics": nothing}
    assert round_line({**record, "train_loss": 0.61238}) == "round 1/2  training loss 0.6124"
    assert round_line({**record, "final": True}) == "final 1/2  no held-out rows"
    assert round_line({**record, "train_loss": 0.6, "metrics": {}}) == "round 1/2"


def test_a_file_gets_one_line_per_round_and_no_escape_codes(tmp_path, capsys):
    with telemetry(tmp_path, show=True) as t:
        for n in (1, 2, 3):
            t.round_done({"round": n, **RECORD})
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["round 1/3", "round 2/3", "round 3/3"]
    assert "\x1b" not in out
    assert "\r" not in out
    assert err == ""


def test_a_note_cannot_move_the_cursor(tmp_path, capsys):
    with telemetry(tmp_path, show=True) as t:
        t.note("site \x1b[2J\r\nround 9/9 is late")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x1b" not in out
    assert "\r" not in out


def test_who_does_not_show_is_silent(tmp_path, capsys):
    with telemetry(tmp_path) as t:
        t.round_done({"round": 1, **RECORD})
        t.note("hello")
    assert capsys.readouterr().out == ""


def test_what_is_logged_next_belongs_to_the_next_round(tmp_path):
    with telemetry(tmp_path) as t:
        t.round_done({"round": 1})
        assert current_round.get() == 2
        t.round_done({"round": 3, "final": True})
        assert current_round.get() is None


SHOW = """
import sys
from pathlib import Path
from fedhpc.app.telemetry import Telemetry
with Telemetry(Path(sys.argv[1]), site="a", site_number=1, rank=0, show=True, rounds=3) as t:
    for n in (1, 2, 3):
        t.round_done({"round": n, "metrics": {"loss": 1 / n}})
"""


def on_terminal(tmp_path: Path, stderr_too: bool) -> str:
    """What a terminal gets from SHOW; stderr is a pipe where `stderr_too` is false, as under mpirun."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW, str(tmp_path)],
        stdout=slave,
        stderr=slave if stderr_too else subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    seen = b""
    try:
        while block := os.read(master, 1 << 16):
            seen += block
    except OSError:  # Linux says EIO when the last writer is gone
        pass
    finally:
        os.close(master)
        assert process.wait(60) == 0
    return seen.decode()


def test_a_terminal_gets_a_bar_below_the_lines(tmp_path):
    seen = on_terminal(tmp_path, stderr_too=True)
    assert "━" in seen
    assert " 2/3" in seen
    assert seen.endswith("\r\x1b[2K")  # taken away at the end
    # What remains on the screen: the text after the last clearing of each terminal line.
    screen = [line.rsplit("\x1b[2K", 1)[-1].strip() for line in seen.split("\n")]
    assert [line.split("  ")[0] for line in screen if line] == ["round 1/3", "round 2/3", "round 3/3"]


def test_mpirun_into_a_file_gets_no_bar(tmp_path):
    seen = on_terminal(tmp_path, stderr_too=False)
    assert "\x1b" not in seen
    assert len(seen.splitlines()) == 3
