"""The driver of benchmarks/peers, with peers that are scripts of this test and sums of ours that are real."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT
from prove import TARGETS

from benchmarks.complaints import complaints
from benchmarks.peers.__main__ import main, summary
from benchmarks.peers.alternation import Alternation, store
from benchmarks.peers.cases import CASES, Aim, Case, Cost, Ours, Peer, case_of, peers
from benchmarks.peers.environments import EnvironmentFailedError, pinned, python_of, stamp
from benchmarks.runs import read_results

Record = dict[str, Any]
NOTHING = Cost(1, 1, 0, 0)
PEER = Peer("toy-1k", "toy", "plain toy", "toy.py", "toy", "toy", NOTHING, aim=Aim(wall=2))
OURS = Ours("masked sum", NOTHING, script="ours.py")
CASE = Case("toys", "toys", 1000, OURS, (PEER,), warm=(3, 2))
TOY = """
import argparse, json, os, sys, time
parser = argparse.ArgumentParser()
for name in ("--params", "--sites", "--rounds"):
    parser.add_argument(name, type=int)
parser.add_argument("--work")
given = parser.parse_args()
assert os.listdir(given.work) == []
spans = []
for _ in range(given.rounds):
    start = time.monotonic()
    time.sleep(0.01)
    spans.append([start, time.monotonic()])
said = {"system": "toy", "version": "1.0", "work": "plain toy", "first": spans[0], "rounds": spans[1:]}
said |= {"verified": True, "error": 0.0, "tolerance": 0.0, "settings": {"a": 1}, "versions": {"python": "3"}}
said |= {"server_pids": [os.getpid()]}
"""
SAYS = "print(json.dumps(said))\n"
# As the driver is called, in a process of its own, with scripts and environments of the test.
DRIVER = """
import json, sys
from pathlib import Path
from benchmarks.peers.alternation import Alternation
from test_peer_driver import CASE, with_
folder = Path(sys.argv[1])
case = with_(CASE, json.loads(sys.argv[2]))
print(json.dumps(Alternation(case, scripts=folder, pins=folder, build=folder / "build").run()))
"""


def with_(case: Case, changes: dict[str, Any]) -> Case:
    """The case with other figures of its peer and of itself."""
    peer = {name: changes.pop(name) for name in ("memory_share", "environment") if name in changes}
    if "bytes_per_param" in changes:
        peer["cost"] = dataclasses.replace(NOTHING, bytes_per_param=changes.pop("bytes_per_param"))
    if changes.pop("real", False):
        changes["ours"] = Ours("masked sum", NOTHING, ("sum",))
        changes["sites"] = 2
    return dataclasses.replace(case, peers=(dataclasses.replace(case.peers[0], **peer),), **changes)


def prepared(folder: Path, toy: str) -> None:
    """A peer's script and environment, and a script that is ours."""
    (folder / "toy.py").write_text(toy)
    (folder / "ours.py").write_text(TOY + SAYS)
    (folder / "toy.txt").write_text("toy==1.0\n")
    made = folder / "build" / "toy" / "bin"
    made.mkdir(parents=True, exist_ok=True)
    if not (made / "python").exists():
        (made / "python").symlink_to(sys.executable)
        mark = stamp(folder / "toy.txt", ROOT / "constraints.txt", made.parent)
        (made.parent / "made-of").write_text(mark)


def run(folder: Path, toy: str = TOY + SAYS, **changes: Any) -> list[Record]:
    prepared(folder, toy)
    words = [sys.executable, "-c", DRIVER, str(folder), json.dumps(changes)]
    here = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{ROOT / 'tests'}"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | here, timeout=200)
    assert done.returncode == 0, done.stderr
    found: list[Record] = json.loads(done.stdout)
    return found


def checked(folder: Path, records: Sequence[Record]) -> list[str]:
    """What complaints.py says of them."""
    (folder / "results").mkdir()
    store(folder / "results" / "peers.jsonl", records)
    return complaints(read_results(folder / "results"))


def test_ours_and_the_peer_in_turn(tmp_path: Path) -> None:
    records = run(tmp_path, real=True)
    assert [(r["turn"], r["system"]) for r in records] == [
        *[(1, "fedhpc")] * 3,
        *[(1, "toy")] * 3,
        *[(2, "toy")] * 2,
        *[(2, "fedhpc")] * 2,
    ]
    assert len({r["run_id"] for r in records}) == 1
    assert [r["repeat"] for r in records if r["row"]] == [1, 2, 3, 4, 5]
    toy = next(r for r in records if r["row"])
    assert 0.01 <= toy["wall_s"] < toy["measured"]["first_s"] + 60
    assert toy["measured"]["server_bytes"] == toy["peak_bytes"] > 0
    assert toy["settings"] == {"a": 1, "case": "toys", "program": "toy.py"}
    ours = next(r for r in records if not r["row"])
    stages = ours["measured"]["stages_s"]
    assert stages["digest"] > 0
    assert ours["wall_s"] > ours["measured"]["masked_s"]  # the sum's hash is in it
    assert checked(tmp_path, records) == []
    found = summary(records)["toys"]
    assert (found["ours"]["verified"], found["toy-1k"]["verified"], found["toy-1k"]["rounds"]) == (True, True, 5)
    assert found["toy-1k"]["wall_s_over_ours"] == pytest.approx(
        found["toy-1k"]["wall_s"] / found["ours"]["wall_s"], rel=0.1, abs=0.001
    )


@pytest.mark.parametrize(
    ("toy", "why"),
    [
        ("import sys\nsys.exit('no port is free')\n", "exit code 1: no port is free"),
        (
            "import sys\nprint('OSError: no space', '-' * 9, file=sys.stderr, sep='\\n')\nsys.exit(2)\n",
            "exit code 2: OSError: no space",
        ),
        (TOY + "print('hello')\n", "its last line is no JSON object: hello"),
        (TOY + "said['verified'] = False\n" + SAYS, "the result is not verified: it is off by 0, and 0 is allowed"),
        (TOY + "said['error'] = 0.5\n" + SAYS, "the result is not verified: it is off by 0.5, and 0 is allowed"),
        (TOY + "said['error'] = float('nan')\n" + SAYS, "the result is not verified: it is off by nan"),
        (TOY + "said['rounds'].pop()\n" + SAYS, "it gave 2 warm rounds in place of 3"),
        (TOY + "said['rounds'][0].reverse()\n" + SAYS, "a round ends before it starts"),
        (TOY + "said['rounds'][0][0] -= 1e6\n" + SAYS, "a round lies outside the time that it ran"),
        (TOY + "said.pop('tolerance')\n" + SAYS, "its JSON object is not as agreed: KeyError 'tolerance'"),
        (TOY + "said['server_pids'] = [1]\n" + SAYS, "none of its server_pids was one of its processes"),
    ],
)
def test_a_peer_that_fails_is_a_record(tmp_path: Path, toy: str, why: str) -> None:
    records = run(tmp_path, toy, warm=[3])
    (failed,) = [r for r in records if r["row"]]
    assert failed["failed"].startswith(why)
    assert (failed["system"], failed["version"], failed["work"]) == ("toy", "1.0", "plain toy")
    assert sum(not r["row"] for r in records) == 3  # ours goes on
    assert summary(records)["toys"]["toy-1k"] == {"failed": failed["failed"]}
    assert [text for text in checked(tmp_path, records) if "toy" in text] == []


def test_what_does_not_fit_into_memory_is_not_started(tmp_path: Path) -> None:
    records = run(tmp_path, bytes_per_param=1 << 40)
    (skipped,) = [r for r in records if r["row"]]  # in neither turn
    assert "it takes about 1024000.0 GiB, more than 85% of the " in skipped["skipped"]


def test_an_environment_without_pins(tmp_path: Path) -> None:
    records = run(tmp_path, environment="none", warm=[1, 1])
    assert [r["failed"] for r in records if r["row"]] == ["there is no none.txt"]


def test_records_of_a_case_replace_older_ones(tmp_path: Path) -> None:
    lines = tmp_path / "deep" / "peers.jsonl"
    store(lines, [{"case": "a", "n": 1}, {"case": "a", "n": 2}])
    store(lines, [{"case": "b", "n": 3}])
    store(lines, [{"case": "a", "n": 4}])
    assert [json.loads(line)["n"] for line in lines.read_text().splitlines()] == [3, 4]


def test_an_interrupted_run_leaves_older_records_of_the_case(tmp_path: Path) -> None:
    lines = tmp_path / "peers.jsonl"
    store(lines, [{"case": "a", "run_id": "1", "n": n} for n in (1, 2)])
    for some in (1, 2):  # after each turn those so far
        store(lines, [{"case": "a", "run_id": "2", "n": 3 + n} for n in range(some)], whole=False)
    assert [json.loads(line)["n"] for line in lines.read_text().splitlines()] == [1, 2, 3, 4]
    store(lines, [{"case": "a", "run_id": "2", "n": 3 + n} for n in range(3)])
    assert [json.loads(line)["n"] for line in lines.read_text().splitlines()] == [3, 4, 5]


def test_records_are_kept_after_every_turn(tmp_path: Path) -> None:
    (tmp_path / "toy.txt").write_text("toy==1.0\n")
    (tmp_path / "ours.py").write_text(TOY + SAYS)
    kept = list[list[tuple[str, int, int]]]()
    case = dataclasses.replace(CASE, peers=(dataclasses.replace(PEER, environment="none"),), warm=(1, 1))
    records = Alternation(case, scripts=tmp_path, pins=tmp_path, build=tmp_path / "build").run(
        lambda some: kept.append([(r["row"], r["repeat"], r["repeats"]) for r in some])
    )
    assert kept == [
        [("", 1, 1)],
        [("", 1, 1), ("toy-1k", 1, 1)],
        [("", 1, 2), ("toy-1k", 1, 1), ("", 2, 2)],
    ]
    assert [r["repeat"] for r in records] == [1, 1, 2]


@pytest.mark.parametrize(("older", "why"), [(None, "Is a directory"), ("{}\nno record\n", "line 2 is no record")])
def test_a_file_of_records_that_cannot_be_used_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, older: str | None, why: str
) -> None:
    monkeypatch.setattr(Alternation, "run", lambda *_: pytest.fail("it measured before it looked"))
    lines = tmp_path / "peers.jsonl"
    if older is None:
        lines.mkdir()
    else:
        lines.write_text(older)
    assert main(["--lines", str(lines), "allreduce-100M"]) == 2
    assert capsys.readouterr().err == (
        f"error: {lines}: {why}\nhint: --lines FILE names another file for the records\n"
    )


# The whole program, with a case of the test's own whose peer says on the screen that it runs, and does not end.
PROGRAM = """
import sys
from pathlib import Path
from benchmarks.peers import __main__ as program, alternation
from test_peer_driver import CASE
folder = Path(sys.argv[1])
program.CASES = (CASE,)
made = alternation.Alternation
program.Alternation = lambda case, small: made(case, small, scripts=folder, pins=folder, build=folder / "build")
sys.exit(program.main(["--lines", str(folder / "peers.jsonl")]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_measured(tmp_path: Path, number: signal.Signals) -> None:
    endless = "import os, time\nprint(os.getpid(), file=open({0!r}, 'w'), flush=True)\ntime.sleep(600)\n"
    told = tmp_path / "pid"
    prepared(tmp_path, endless.format(str(told)))
    here = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{ROOT / 'tests'}"}
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, env=os.environ | here) as program:
        until = time.monotonic() + 100
        while not (told.exists() and told.read_text()) and time.monotonic() < until:
            assert program.poll() is None
            time.sleep(0.05)
        program.send_signal(number)
        assert program.wait(60) == 128 + number
    assert not Path(f"/proc/{int(told.read_text())}").exists()
    records = [json.loads(line) for line in (tmp_path / "peers.jsonl").read_text().splitlines()]
    assert [(r["row"], r["repeat"], r["repeats"], r["verified"]) for r in records] == [
        ("", number, 3, True) for number in (1, 2, 3)
    ]


def test_cases_have_names_of_their_own_and_scripts_that_pins_belong_to() -> None:
    names = [case.name for case in CASES]
    rows = [peer.row for case in CASES for peer in case.peers]
    assert len(set(names)) == len(names)
    assert len(set(rows)) == len(rows) == len(peers())
    for row in rows:
        case = case_of(row)
        assert case is not None
        assert row in [peer.row for peer in case.peers]
    assert case_of("none") is None
    assert all(sum(case.warm) >= 5 or case.name == "streaming-250M" for case in CASES)


def test_small_is_one_turn_of_a_small_vector() -> None:
    small = CASES[0].small()
    assert (small.params, small.warm) == (100_000, (1,))


def test_pins(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("# why\nother==3\nflwr[simulation]==1.42.0  # newest\n")
    assert pinned("x", "flwr", tmp_path) == "1.42.0"
    assert pinned("x", "ray", tmp_path) == "unknown"
    with pytest.raises(EnvironmentFailedError, match=r"there is no y\.txt"):
        python_of("y", tmp_path, tmp_path)


def test_the_list_and_names_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(peer.row in listed for case in CASES for peer in case.peers)
    assert all(re.search(rf"^{case.name}: .* about \d+ min", listed, re.M) for case in CASES)
    assert main(["--list", "--quick"]) == 0
    quick = capsys.readouterr().out
    assert [case.name for case in CASES if f"{case.name}: " not in quick] == ["streaming-250M"]
    assert main(["flowr"]) == 2
    assert capsys.readouterr().err == textwrap.dedent(
        f"""\
        error: no case is called flowr
        hint: one of {", ".join(case.name for case in CASES)}
        """
    )
    assert main(["--turns", "0"]) == 2


OURS_WHOLE = {"verified": True, "rounds": 5, "wall_s": 1.0}
NO_PIP = "-m pip install: exit code 1: ERROR: no matching distribution"


@pytest.mark.parametrize(
    ("result", "wrong"),
    [
        ({"a": {"ours": OURS_WHOLE, "x": {"verified": True}, "y": {"failed": "exit code 1"}}}, ""),
        ({"a": {"ours": OURS_WHOLE, "x": {"skipped": "too large"}}}, "a: no peer's result is verified"),
        ({"a": {"ours": OURS_WHOLE, "x": {"failed": "exit code 1"}}}, "a: no peer's result is verified"),
        ({"a": {"x": {"verified": True}}}, "a: there is no verified sum of ours, or no peer"),
        (
            {"a": {"ours": OURS_WHOLE, "x": {"verified": True}, "y": {"failed": NO_PIP}}},
            f"a: y was not tried: {NO_PIP}",
        ),
        ({"a": {"ours": OURS_WHOLE}}, "a: there is no verified sum of ours, or no peer"),
        ({"a": {"ours": {"failed": "x"}, "x": {"verified": True}}}, "a: there is no verified sum of ours, or no peer"),
        ({"a": {"ours": OURS_WHOLE, "x": {}}}, "a: nothing is said of x"),
        ({"a": {"ours": OURS_WHOLE, "x": {"verified": False, "failed": "y"}}}, "a: nothing is said of x"),
        ({}, "it says nothing of its cases"),
        ("Traceback", "it says nothing of its cases"),
    ],
)
def test_what_is_evidence(result: Any, wrong: str) -> None:
    assert TARGETS["bench-peers"].check(result) == wrong


def test_an_environment_is_made_anew_unless_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "y.txt").write_text("")
    python = python_of("y", tmp_path, tmp_path)
    rest = tmp_path / "y" / "half"
    rest.touch()
    assert python_of("y", tmp_path, tmp_path) == python
    assert rest.exists()  # it was whole
    (tmp_path / "y" / "made-of").unlink()  # as where pip was interrupted
    python_of("y", tmp_path, tmp_path)
    assert not rest.exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "y").rename(elsewhere / "y")  # its commands would start a Python that is no more
    (elsewhere / "y" / "half").touch()
    python_of("y", tmp_path, elsewhere)
    assert not (elsewhere / "y" / "half").exists()


@pytest.mark.parametrize("pins", [None, "no requirement at all\n"])
def test_a_peer_without_its_environment_is_no_evidence(tmp_path: Path, pins: str | None) -> None:
    if pins:
        (tmp_path / "y.txt").write_text(pins)
    with pytest.raises(EnvironmentFailedError) as failed:
        python_of("y", tmp_path, tmp_path)
    sides = {"ours": OURS_WHOLE, "x": {"verified": True}, "y": {"failed": str(failed.value)}}
    assert TARGETS["bench-peers"].check({"a": sides}) == f"a: y was not tried: {failed.value}"


def test_a_sum_of_ours_that_fails_is_a_complaint(tmp_path: Path) -> None:
    records = run(tmp_path, warm=[1])
    ours = next(r for r in records if not r["row"])
    for name in ("wall_s", "cpu_s", "peak_bytes", "verified"):
        del ours[name]
    ours["failed"] = "exit code 3: no"
    assert "peers.jsonl: masked sum: repeat 1: failed: exit code 3: no" in checked(tmp_path, records)
