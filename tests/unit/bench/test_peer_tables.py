"""Tables of what was measured beside peers, from records whose ratios can be told by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.peer_tables import sections
from benchmarks.peers.cases import CASES
from benchmarks.peers.cases import peers as known_peers

Record = dict[str, Any]
GIB = 1 << 30
MACHINE = {"processor": "a processor", "cores": 2, "memory_gib": 24, "kernel": "Linux 6"}
ROW = "flower-simulation-secagg-100M"  # its aims: 30 times faster, 4 times less memory
RELAYED = "flower-deployment-plain-100M"  # 2 times faster, 20 times less memory of the server


def side(row: str, seconds: float, n: int = 5, run: str = "1", **more: Any) -> list[Record]:
    """`n` rounds from `seconds` on, in steps of a tenth."""
    peer = row != ""
    shared = {"case": more.pop("case", ROW), "row": row, "work": "secure aggregation" if peer else "masked sum"}
    shared |= {"params": 100_000_000, "sites": 4, "ranks": [1] * 4, "run_id": run, "machine": MACHINE, "load": 0.1}
    shared |= {"system": "flower simulation" if peer else "fedhpc", "version": "1.42.0" if peer else "0.1.0"}
    shared |= {"command": f"python -m benchmarks.peers {ROW}", "date": f"2026-11-30T12:0{run}:00+00:00"}
    shared |= {"settings": {"case": ROW, "program": "x.py --secure", "shares": 4}, "versions": {"ray": "2.55"}}
    measured = {"fall_bytes": more.pop("fall", GIB), "error": more.pop("error", 0.0), "tolerance": 0.5}
    measured |= {"server_bytes": more.pop("server")} if "server" in more else {}
    return [
        {"wall_s": seconds * (1 + k / 10), "cpu_s": 2 * seconds, "peak_bytes": 2 * GIB, "verified": True}
        | {"repeat": k + 1, "repeats": n, "measured": dict(measured)}
        | shared
        | more
        for k in range(n)
    ]


def cells(lines: list[str], head: str) -> list[list[str]]:
    """The table whose head starts so, without its head."""
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {head} "))
    end = next(k for k in range(start, len(lines) + 1) if k == len(lines) or not lines[k].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start + 2 : end]]


def targets(lines: list[str]) -> list[list[str]]:
    """The target table without the rows of what has no record."""
    return [row for row in cells(lines, "work") if row[3:5] != ["–", "–"]]


def test_ratios_of_medians_and_aims() -> None:
    peer = side(ROW, 40.0, peak_bytes=24 * GIB, fall=10 * GIB, error=0.25)
    lines = sections([*side("", 1.0), *peer])
    assert targets(lines) == [
        [
            *("masked sum over MPI", "flower simulation 1.42.0: secure aggregation", "100M, 4 sites", "1.2", "48"),
            *("40×", "40×", "10×", "–", "≥ 30× faster, ≥ 4× less memory", "yes"),
        ]
    ]
    ours, theirs = cells(lines, "row")
    assert ours[0] == f"ours in {ROW}"
    assert theirs == [
        *(ROW, "flower simulation 1.42.0", "secure aggregation", "100M, 4 sites", "48 (40 to 56)", "–"),
        *("80 (80 to 80)", "24.00", "10.00", "–", "5", "0.25 of 0.5", "True"),
    ]
    (how,) = [line for line in lines if line.startswith(f"- {ROW}:")]
    assert how == (
        f"- {ROW}: `python -m benchmarks.peers {ROW}` (x.py --secure); 2026-11-30, load 0.1, a processor, 2 cores, "
        "24 GiB, Linux 6; settings: shares 4; versions: flower simulation 1.42.0, ray 2.55"
    )


def test_an_aim_that_is_missed_says_of_what() -> None:
    lines = sections([*side("", 2.0), *side(ROW, 40.0, peak_bytes=6 * GIB, fall=30 * GIB)])
    assert targets(lines)[0][5:] == [
        "20×",
        "20×",
        "3×",
        "–",
        "≥ 30× faster, ≥ 4× less memory",
        "no: wall, memory",
    ]


def test_a_fall_of_memory_that_is_noise_does_not_count() -> None:
    lines = sections([*side("", 1.0, fall=-5), *side(ROW, 40.0, peak_bytes=24 * GIB)])
    assert targets(lines)[0][7] == "12×"


def test_the_memory_of_servers() -> None:
    rows = [*side("", 4.0, case=RELAYED, server=GIB // 10), *side(RELAYED, 12.0, case=RELAYED, server=GIB)]
    assert targets(sections(rows))[0][5:] == [
        *("3×", "3×", "1×", "10×", "≥ 2× faster, ≥ 20× less server memory", "no: server memory"),
    ]


def test_few_rounds_are_marked() -> None:
    (line,) = targets(sections([*side("", 1.0, n=2), *side(ROW, 40.0, n=4, peak_bytes=24 * GIB, fall=24 * GIB)]))
    assert line[3:5] == ["1.05*", "46*"]
    assert line[10] == "yes, of 2 only"
    (line,) = targets(sections([*side("", 2.0), *side(ROW, 40.0, n=3, peak_bytes=6 * GIB, fall=30 * GIB)]))
    assert line[10] == "no: wall, memory, of 3 only"


def test_failures_are_shown_and_break_no_table() -> None:
    failed = side(ROW, 1.0, n=1)
    for name in ("wall_s", "cpu_s", "peak_bytes", "verified", "measured"):
        del failed[0][name]
    failed[0]["failed"] = "exit code 1: a | b\n<c> `d`"
    lines = sections([*side("", 1.0), *failed])
    assert targets(lines)[0][4:] == [
        *("failed: exit code 1: a / b ‹c> 'd'", "–", "–", "–", "–", "≥ 30× faster, ≥ 4× less memory", "not measured"),
    ]
    assert cells(lines, "row")[1][4:6] == ["failed: exit code 1: a / b ‹c> 'd'", "–"]
    partly = sections([*side("", 1.0), *side(ROW, 40.0, n=3, peak_bytes=24 * GIB, fall=24 * GIB), *failed])
    assert cells(partly, "row")[1][10] == "3; failed: exit code 1: a / b ‹c> 'd'"
    assert targets(partly)[0][10] == "yes, of 3 only; 1 turn of the peer lost"
    skipped = [{**failed[0], "skipped": "too large"}]
    del skipped[0]["failed"]
    assert targets(sections(skipped))[0][3:5] == ["not measured", "skipped: too large"]


def test_the_newest_run_of_a_row_counts_whole() -> None:
    old = [*side("", 1.0, run="1"), *side(ROW, 50.0, run="1")]
    new = [*side("", 2.0, run="2"), *side(ROW, 80.0, run="2")]
    assert targets(sections([*new, *old]))[0][3:6] == ["2.4", "96", "40×"]


def test_rows_whose_spans_were_others_are_named() -> None:
    def said(date: str) -> bool:
        records = [r | {"date": date} for r in [*side("", 1.0), *side(ROW, 40.0)]]
        lines = sections(records)
        return any(line.startswith("**Measured before") and ROW in lines[k + 1] for k, line in enumerate(lines))

    assert said("2026-11-30T12:00:00+00:00")
    assert not said("2026-12-02T12:00:00+00:00")


def test_ours_is_listed_once_for_all_peers_of_a_case() -> None:
    other = "flower-simulation-plain-100M"
    lines = sections([*side("", 1.0), *side(ROW, 40.0), *side(other, 8.0)])
    assert [row[0] for row in cells(lines, "row")] == [f"ours in {ROW}", other, ROW]
    assert [row[5] for row in targets(lines)] == ["8×", "40×"]


def test_a_peer_without_a_record_has_a_row_that_says_so() -> None:
    for records in ([], [*side("", 1.0), *side(ROW, 40.0)]):
        lines = sections(records)
        missing = [row for row in cells(lines, "work") if row[3:5] == ["–", "–"]]
        assert len(missing) == len(known_peers()) - (1 if records else 0)
        assert all(row[3:9] == ["–"] * 6 and row[10] == "not measured" for row in missing)
        commands = [line.split("`")[1] for line in lines if line.startswith("- ")]
        assert commands == [f"python -m benchmarks.peers {name}" for name in known_peers()]
    assert cells(sections([]), "work")[0][:3] == [
        *("masked sum over MPI", "mpi4py: plain allreduce", "100M, 4 sites"),
    ]
    assert not [line for line in sections([]) if line.startswith("| row ")]


def test_the_command_that_leaves_out_the_longest_stands_there() -> None:
    text = "\n".join(sections([]))
    slow = [peer.row for case in CASES if case.long for peer in case.peers]
    assert slow
    assert "`python -m benchmarks.peers --quick`" in text
    assert all(row in text.split("### How it was done")[1].split("\n- ")[0] for row in slow)


def test_a_row_that_is_no_known_peer_stands_last() -> None:
    lines = sections([*side("", 1.0), *side("another", 8.0), *side(ROW, 40.0)])
    assert [row[5] for row in targets(lines)] == ["40×", "8×"]
