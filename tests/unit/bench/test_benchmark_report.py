"""`python -m benchmarks.report`: tables of results, and a check that refuses those that lost something."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT

from benchmarks.complaints import SINCE_KERNELS
from benchmarks.report.over_a_relay import _disk_against_memory
from benchmarks.runs import BUILDS
from fedhpc.bench.record import KEYS, METRICS, Origin, append_lines, lines_of
from fedhpc.errors import StorageError
from fedhpc.kernel.choice import running

Record = dict[str, Any]
MACHINE = {"processor": "a processor", "cores": 2, "memory_gib": 24, "kernel": "Linux 6"}
STAGES = {"encode": 0.1, "masks": 0.2}


def records(seconds: float = 1.0, n: int = 5, **more: Any) -> list[Record]:
    """What a sum's repeats leave: times from `seconds` on, in steps of a tenth."""
    run = more.get("run_id", f"{seconds}-{more.get('params')}-{more.get('sites')}")
    shared = {"work": "masked sum", "params": 1000, "sites": 4, "ranks": [1] * more.get("sites", 4), "system": "fedhpc"}
    shared |= {"version": "0.1.0", "machine": MACHINE, "date": "2026-11-30T12:00:00+00:00", "run_id": run}
    shared |= {"command": f"fedhpc bench sum --repeat {n}", "settings": {"lane_bits": 32}, "load": 1.0, "repeats": n}
    shared |= {"versions": {"numpy": "2", "mpi": ""}}
    measured = {"plain_s": 0.1, "unmasked_s": 0.2, "masked_s": 0.3, "unmasked_cpu_s": 0.4, "stages_s": STAGES}
    return [
        {"wall_s": seconds * (1 + k / 10), "cpu_s": 2.0, "peak_bytes": 1 << 28, "verified": True, "repeat": k + 1}
        | {"measured": dict(measured)}
        | shared
        | more
        for k in range(n)
    ]


def store(folder: Path, *runs: list[Record]) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for run in runs for record in run)
    (folder / "sums.jsonl").write_text(text)
    return folder


def report(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.report", "--results", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def refused(folder: Path, *complaints: str, expect: str = "masked sum") -> None:
    done = report(folder, "--check", "--expect", expect)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    for complaint in complaints:
        assert complaint in done.stderr
    assert f", {done.stderr.count('error: ')} errors" in done.stdout


def page(folder: Path) -> str:
    done = report(folder, "--page", str(folder / "page.md"))
    assert done.returncode == 0, done.stderr
    return (folder / "page.md").read_text()


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table under `title`, without its head."""
    lines = text.split(f"{title}\n", 1)[1].split("\n#", 1)[0].splitlines()
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")][1:]


def test_whole_results_pass(tmp_path: Path) -> None:
    done = report(store(tmp_path, records(), records(2.0, sites=8)), "--check", "--expect", "masked sum")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 runs checked, 0 errors, 0 files without records\n"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_record_is_needed(tmp_path: Path, key: str) -> None:
    run = records()
    del run[3][key]
    refused(store(tmp_path, run), f"{key} is missing")


@pytest.mark.parametrize("name", METRICS[:-1])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1.0", True])
def test_a_metric_that_is_no_figure(tmp_path: Path, name: str, value: Any) -> None:
    run = records()
    run[0][name] = value
    refused(store(tmp_path, run), f"repeat 1: {name} is {value!r}")


def _lose(name: str) -> Callable[[list[Record]], object]:
    return lambda run: run[1]["measured"].pop(name)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_lose("plain_s"), "repeat 2: plain_s is missing"),
        (_lose("stages_s"), "repeat 2: stages_s is missing"),
        (lambda run: run[2]["measured"].update(masked_s=float("nan")), "repeat 3: masked_s is missing"),
        (lambda run: run[2].update(verified=False), "repeat 3: the result is not verified"),
        (lambda run: run[2].update(verified="True"), "repeat 3: the result is not verified"),
        (lambda run: run.pop(), "5 repeats were asked for, and there are 1, 2, 3, 4"),
        (lambda run: run[4].update(repeat=4), "5 repeats were asked for, and there are 1, 2, 3, 4, 4"),
        (lambda run: [record.pop("repeats") for record in run], "nobody knows how many were asked for"),
        (lambda run: [record.update(work="maskedsum") for record in run], "there is no such work"),
        (lambda run: run[1].update(machine=MACHINE | {"cores": 4}), "different values of machine"),
        (lambda run: run.clear(), "sums.jsonl holds no record"),
    ],
)
def test_what_was_lost_is_named(tmp_path: Path, change: Callable[[list[Record]], object], complaint: str) -> None:
    run = records()
    change(run)
    refused(store(tmp_path, run), complaint)


def test_a_work_that_nobody_measured(tmp_path: Path) -> None:
    refused(store(tmp_path, records()), "there is no record of the work 'training round'", expect="training round")


def test_no_results_at_all(tmp_path: Path) -> None:
    refused(tmp_path, "there is no result")


def test_a_line_that_was_cut_off(tmp_path: Path) -> None:
    file = store(tmp_path, records()) / "sums.jsonl"
    file.write_text(file.read_text()[:-40])
    refused(tmp_path, "line 5 is no JSON object", "5 repeats were asked for, and there are 1, 2, 3, 4")


def test_two_machines_in_one_ratio(tmp_path: Path) -> None:
    other = MACHINE | {"processor": "another"}
    folder = store(tmp_path, records(), records(2.0, params=2000, machine=other))
    refused(folder, "masked sum, 4 sites: one ratio over params of 2 machines: a processor, 2 cores", "another")
    assert [row[3] for row in rows(page(folder), "### Over parameters")] == ["other machine"] * 2
    assert not list(folder.glob("images/*"))
    apart = store(tmp_path / "apart", records(), records(2.0, params=2000, sites=5, machine=other))
    assert report(apart, "--check").returncode == 0  # no ratio of the two


def test_a_second_cluster_or_a_peer_in_no_ratio_is_no_fault(tmp_path: Path) -> None:
    other = MACHINE | {"processor": "another"}
    folder = store(tmp_path, records())
    for at, name in enumerate(("partition_a.jsonl", "partition_b.jsonl", "peers.jsonl")):
        run = records(2.0, params=2000 * (at + 1), machine=other | {"cores": at + 4})
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in run))
    done = report(folder, "--check")
    assert (done.returncode, done.stdout) == (0, "4 runs checked, 0 errors, 0 files without records\n"), done.stderr


def test_what_failed_may_not_know_its_version(tmp_path: Path) -> None:
    peer = records(system="a peer", work="plain FedAvg")
    lost = {name: value for name, value in peer[4].items() if name not in (*METRICS, "repeat", "measured")}
    run = [*peer[:4], lost | {"version": "unknown", "failed": "exit code 1", "repeat": 5}]
    assert report(store(tmp_path, run), "--check").returncode == 0
    peer[4]["version"] = "unknown"
    refused(store(tmp_path, peer), "different values of version", expect="masked sum")


def test_every_aim_has_a_row_without_any_result_of_it(tmp_path: Path) -> None:
    own = rows(page(store(tmp_path, records())), "Beside itself:\n")
    assert [row[1] for row in own] == ["–"] * 4
    assert [row[3] for row in own] == ["not measured"] * 4
    assert [row[2] for row in own] == ["≤ 3", "≥ 0.97", "≤ 1.2", "≤ 1.2"]


def test_backends_without_records_have_their_row(tmp_path: Path) -> None:
    (tmp_path / "backends.json").write_text((ROOT / "benchmarks" / "results" / "backends.json").read_text())
    whole = json.loads((tmp_path / "backends.json").read_text())
    for backend in whole["result"]["backends"]:
        backend["speed_over_plain"] = 0.98 if backend["backend"] == "ddp" else 0.5
        for name in ("run_id", "work", "system", "cpu_s", "repeats"):
            backend.pop(name, None)
    (tmp_path / "backends.json").write_text(json.dumps(whole))
    speeds = [row for row in rows(page(tmp_path), "Beside itself:\n") if "throughput" in row[0]]
    assert len(speeds) == len(whole["result"]["backends"])
    assert [row[3] for row in speeds if row[1] == "0.98"] == ["yes, of a median without its spread"]
    assert {row[3] for row in speeds if row[1] == "0.5"} == {"**no**, of a median without its spread"}


def test_efficiency_medians_and_spread(tmp_path: Path) -> None:
    runs = records(1.0), records(4.0, params=2000), records(1.5, sites=8), records(8.0, n=3, params=4000)
    text = page(store(tmp_path, *runs))
    assert "- 2026-11-30, a processor, 2 cores, 24 GiB, Linux 6; numpy 2\n" in text
    assert rows(text, "### Over parameters") == [
        ["masked sum, 4 sites", "1000", "1.2 (1 to 1.4)", "1.00", "2026-11-30"],
        ["masked sum, 4 sites", "2000", "4.8 (4 to 5.6)", "0.50", "2026-11-30"],
        ["masked sum, 4 sites", "4000", "8.8* (8 to 9.6)", "0.55", "2026-11-30"],
    ]
    assert [row[1:4] for row in rows(text, "### Over sites")] == [
        ["4", "1.2 (1 to 1.4)", "1.00"],
        ["8", "1.8 (1.5 to 2.1)", "0.67"],
    ]
    assert rows(text, "## Records")[0][4:] == [
        "–",  # older than kernels
        "1.2 (1 to 1.4)",
        "2 (2 to 2)",
        "256",
        "5",
        "1.0",
        "True",
    ]


def test_sums_done_in_other_ways_are_no_series(tmp_path: Path) -> None:
    wide = records(2.0, params=2000, settings={"lane_bits": 64})
    assert "## Scaling" not in page(store(tmp_path, records(), wide))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lane_bits": 64}, "64 bits"),
        ({"lane_bits": 32, "degree": 22, "colluders": 10, "threshold": 38}, "colluders 10, degree 22"),
        ({"latency_ms": 20.0, "mbit_s": 100.0}, "20 ms, 100 Mbit/s"),
        ({"lost": 1, "upload_s": 7.5}, "1 lost, waits 7.5 s"),
        ({"nodes": 2}, "2 nodes"),
        ({"overlap": True}, "overlap on"),
    ],
)
def test_series_done_in_two_ways_have_two_names(tmp_path: Path, settings: Record, words: str) -> None:
    usual = [records(params=params, settings={"lane_bits": 32, "degree": 0}) for params in (1000, 2000)]
    other = [records(3.0, params=params, settings=settings) for params in (1000, 2000)]
    named = [row[0] for row in rows(page(store(tmp_path, *usual, *other)), "### Over parameters")]
    assert sorted(named) == ["masked sum, 4 sites"] * 2 + [f"masked sum, 4 sites, {words}"] * 2


def test_ranks_of_a_site_are_in_the_name_of_a_series(tmp_path: Path) -> None:
    several = [records(3.0, params=params, ranks=ranks) for params in (1000, 2000) for ranks in ([2] * 4, [2, 3, 3, 3])]
    for at, run in enumerate(several):
        for record in run:
            record["run_id"] = str(at)
    named = {row[0] for row in rows(page(store(tmp_path, *several)), "### Over parameters")}
    assert named == {"masked sum, 4 sites, 2 ranks a site", "masked sum, 4 sites, 2 and 3 and 3 and 3 ranks"}


def test_pictures_are_the_same_for_the_same_results(tmp_path: Path) -> None:
    folder = store(tmp_path, records(), records(2.0, params=2000), records(3.0, sites=8))
    assert "![Seconds of sums over sites](images/sum_over_sites.svg)" in page(folder)
    drawn = {path.name: path.read_bytes() for path in folder.glob("images/*.svg")}
    assert set(drawn) == {"sum_over_sites.svg", "sum_over_parameters.svg"}
    assert b"masked sum, 4 sites" in drawn["sum_over_parameters.svg"]
    page(folder)
    assert drawn == {path.name: path.read_bytes() for path in folder.glob("images/*.svg")}


def test_rounds_masks_and_reads_have_tables(tmp_path: Path) -> None:
    times = {"unmasked_s": 0.5, "unmasked_cpu_s": 1.9, "secure_share": 0.02, "stages_s": STAGES}
    rounds = records(work="training round", measured=times)
    masks = records(work="masks and encoding", params=10**6, sites=3, measured={"encode_s": 0.002, "masks_s": 0.004})
    reads = {"open_s": 0.1, "in_order_s": 0.5, "in_order_cpu_s": 0.5, "batches_s": 2.0, "batches_cpu_s": 2.0}
    settings = {"rows": 1000, "row_bytes": 4000}
    stores = records(work="reading a store", sites=1, measured=reads, settings=settings)
    folder = store(tmp_path, rounds, masks, stores)
    assert report(folder, "--check").returncode == 0
    text = page(folder)
    assert rows(text, "## Training rounds")[0][5:7] == ["2 (2 to 2)", "2.04 (2.04 to 2.04)"]
    shown = rows(text, "## Masks and encoding alone")[0]
    assert (shown[1], shown[3], shown[6:8]) == ("–", "–", ["2000", "2000"])
    assert rows(text, "## Reading a site's store")[0][3:7] == ["2000", "8", "500", "2"]


def of_kernel(name: str, seconds: float = 1.0, **more: Any) -> list[Record]:
    """What a sum leaves since records name the kernel."""
    found = records(seconds, kernel=name, cpu_flags=["aes"], suite="sha256", old_commit="", **more)
    for record in found:
        record["measured"] |= dict.fromkeys(SINCE_KERNELS["masked sum"], 0.25)
    return found


def test_records_that_name_a_kernel_are_whole(tmp_path: Path) -> None:
    done = report(store(tmp_path, of_kernel("vaes"), records(sites=8)), "--check", "--expect", "masked sum")
    assert done.returncode == 0, done.stderr
    broken = of_kernel("vaes")
    del broken[1]["measured"]["cpu_real_round_s"], broken[2]["cpu_flags"]
    broken[3]["kernel"] = "magic"
    refused(
        store(tmp_path, broken),
        "repeat 2: cpu_real_round_s is missing",
        "repeat 3: kernel and cpu_flags belong together",
        "repeat 4: there is no kernel 'magic'",
        "its repeats have different values of kernel",
    )


def test_two_kernels_are_in_no_ratio(tmp_path: Path) -> None:
    """Nor in one line of mask streams: another kernel makes another line."""
    sizes = [of_kernel("vaes", 1.0 + sites, sites=sites, params=1000) for sites in (2, 4, 8)]
    older = [records(9.0 + sites, sites=sites, params=1000) for sites in (2, 4, 8)]
    text = page(store(tmp_path, *older, *sizes))
    shown = rows(text, "### Over sites")
    assert [row[0] for row in shown] == ["masked sum, 1k parameters"] * 3 + [
        "masked sum, 1k parameters, kernel vaes"
    ] * 3
    assert [row[3] for row in shown[::3]] == ["1.00", "1.00"]
    assert text.count("### 1k parameters\n") == text.count("### 1k parameters, kernel vaes\n") == 1


def test_processor_time_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "sum_1M.json").read_text())
    older = {k: v for k, v in result["result"].items() if k not in SINCE_KERNELS["masked sum"] and k != "kernel"}
    (tmp_path / "sum_old.json").write_text(json.dumps(result | {"result": older}))
    assert "Processor seconds of all ranks" not in page(tmp_path)
    seconds = dict.fromkeys(("plain_chunked_s", *SINCE_KERNELS["masked sum"]), 0.25)
    ratios = {"cpu_real_round_over_plain": 1.5, "cpu_real_round_over_plain_chunked": 2.5}
    result["result"] |= seconds | ratios | {"kernel": "vaes", "cpu_flags": ["vaes"], "old_commit": "0.1.0"}
    for repeat in result["result"]["repeats"]:
        repeat |= seconds
    (tmp_path / "sum_new.json").write_text(json.dumps(result))
    text = page(tmp_path).split("Processor seconds of all ranks", 1)[1]
    (line,) = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("| `")]
    assert [cell.strip() for cell in line.strip("|").split(" | ")][1:] == [
        *("vaes", "0.2500", "0.2500", "0.2500", "0.2500", "0.2500", "1.50", "2.50", "0.1.0")
    ]


def test_older_results_are_shown_and_named(tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text((ROOT / "benchmarks" / "results" / "latency.json").read_text())
    whole = json.loads((tmp_path / "latency.json").read_text())
    whole["result"] = {
        k: v for k, v in whole["result"].items() if k not in (*METRICS, "work", "system", "run_id", "repeats")
    }
    (tmp_path / "latency.json").write_text(json.dumps(whole))
    done = report(tmp_path, "--check")
    assert done.returncode == 0, done.stderr
    assert "not checked: latency.json is of an older form: it lacks work" in done.stderr
    assert "## One small sum" in page(tmp_path)
    refused(tmp_path, "there is no record of the work 'sum of one number'", expect="sum of one number")
    whole["result"]["verified"] = False
    (tmp_path / "latency.json").write_text(json.dumps(whole))
    refused(tmp_path, "latency.json: the result is not verified", expect="sum of one number")
    whole["result"] |= {"verified": True, "run_id": "1"}  # not of an older form: it lost the rest
    (tmp_path / "latency.json").write_text(json.dumps(whole))
    refused(tmp_path, "latency.json: None lacks work, ", expect="sum of one number")


def test_the_stored_results_pass_and_the_page_is_theirs(tmp_path: Path) -> None:
    done = report(ROOT / "benchmarks" / "results", "--check", "--page", "none")
    assert done.returncode == 0, done.stderr
    report(ROOT / "benchmarks" / "results", "--page", str(tmp_path / "benchmarks.md"))
    assert (tmp_path / "benchmarks.md").read_text() == (ROOT / "docs" / "benchmarks.md").read_text()


def test_a_result_becomes_a_line_for_each_repeat(tmp_path: Path) -> None:
    repeats = [{"wall_s": w, "cpu_s": 3.0, "peak_bytes": 7, "verified": True, "plain_s": 0.5} for w in (2.0, 1.0, 9.0)]
    result = {"params": 3, "sites": 2, "ranks": 2, "repeats": repeats, "lane_bits": 64, "repeat": 500}
    whole = Origin("fedhpc bench x").complete(result, "masked sum")
    assert set(KEYS) <= set(whole)
    assert (whole["wall_s"], whole["cpu_s"], whole["peak_bytes"], whole["repeat"]) == (2.0, 3.0, 7, 500)
    append_lines(tmp_path / "lines.jsonl", [whole])
    append_lines(tmp_path / "lines.jsonl", [whole])
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert lines == 2 * lines_of(whole)
    assert [(r["repeat"], r["repeats"], r["wall_s"]) for r in lines[:3]] == [(1, 3, 2.0), (2, 3, 1.0), (3, 3, 9.0)]
    assert lines[0]["ranks"] == [2]
    assert lines[0]["settings"] == {"lane_bits": 64}
    assert lines[0]["measured"] == {"plain_s": 0.5}
    with pytest.raises(StorageError, match=r"lines\.jsonl"):
        append_lines(tmp_path / "no" / "lines.jsonl", [whole])


def test_lines_of_two_limits_of_memory_can_be_told_apart() -> None:
    whole = {"params": 3, "sites": 1, "ranks": 1, "memory_mib": 256}
    whole |= {"repeats": [{"wall_s": 1.0, "cpu_s": 1.0, "peak_bytes": 1, "verified": True}]}
    of_both = [Origin("x").complete(whole | {"memory_mib": mib}, "reading a store") for mib in (0, 256)]
    assert [lines_of(one)[0]["settings"] for one in of_both] == [{"memory_mib": 0}, {"memory_mib": 256}]


def test_one_repeat_that_is_wrong_makes_all_wrong() -> None:
    repeats = [{"wall_s": 1.0, "cpu_s": 1.0, "peak_bytes": 1, "verified": right} for right in (True, False, True)]
    assert Origin("x").complete({"repeats": repeats}, "masked sum")["verified"] is False


def test_what_measure_stores_is_a_run_for_each_row(tmp_path: Path) -> None:
    times = {"wall_s": 0.5, "cpu_s": 0.4, "peak_bytes": 1 << 26, "verified": True, "encode_s": 0.1, "masks_s": 0.2}
    times["inspect_s"] = 0.05
    rows_of = [
        Origin("fedhpc bench masks").complete(
            {"params": 10**6, "sites": sites, "ranks": [1], "lane_bits": 32, "repeats": [times] * 5, "versions": {}},
            "masks and encoding",
        )
        for sites in (2, 4)
    ]
    whole = {"command": "fedhpc bench masks --json", "date": "2026-11-30", "machine": MACHINE}
    whole["result"] = {"masks": rows_of, "versions": {"numpy": "2"}}
    (tmp_path / "masks.json").write_text(json.dumps(whole))
    done = report(tmp_path, "--check", "--expect", "masks and encoding")
    assert (done.returncode, done.stdout) == (0, "2 runs checked, 0 errors, 0 files without records\n")
    shown = rows(page(tmp_path), "## Masks and encoding alone")
    assert [row[2:4] for row in shown] == [["2", "0.05 (0.05 to 0.05)"], ["4", "0.05 (0.05 to 0.05)"]]
    assert {row[1] for row in shown} == {running().name}
    del rows_of[1]["repeats"]
    (tmp_path / "masks.json").write_text(json.dumps(whole))
    refused(tmp_path, "masks.json: masks and encoding lacks repeats", expect="masks and encoding")
    (tmp_path / "masks.json").write_text("{}")
    refused(tmp_path, "masks.json is no result of benchmarks/measure.py", expect="masks and encoding")


def test_far_lines_lost_sites_and_partitions_have_tables_of_their_own(tmp_path: Path) -> None:
    times = {"plain_s": 0.1, "unmasked_s": 0.5, "unmasked_cpu_s": 1.9, "relay_cpu_s": 0.2}
    relayed = {"work": "relayed masked sum", "measured": times}
    far = records(**relayed, settings={"lane_bits": 32, "latency_ms": 20.0, "mbit_s": 100.0})
    gone = {"work": "relayed masked sum, 1 lost", "measured": times | {"beyond_upload_s": 0.25}}
    lost = records(8.0, **gone, settings={"lane_bits": 32, "lost": 1, "upload_s": 7.5})
    folder = store(tmp_path, far, lost)
    on_nodes = records(3.0, run_id="job", settings={"lane_bits": 32, "nodes": 2})
    (folder / "partition.jsonl").write_text("".join(json.dumps(record) + "\n" for record in on_nodes))
    assert report(folder, "--check").returncode == 0
    text = page(folder)
    assert rows(text, "### Far and narrow lines")[0][1:5] == ["20.0", "100.0", "0.5 (0.5 to 0.5)", "1.2 (1 to 1.4)"]
    assert rows(text, "### Lost sites")[0][1:7] == [
        *("4", "1", "0.5 (0.5 to 0.5)", "7.5", "9.6 (8 to 11.2)", "0.25 (0.25 to 0.25)"),
    ]
    ((work, _, sites, ranks, nodes, _, _, _, load, *_),) = rows(text, "## On partitions")
    assert (work, sites, ranks, nodes, load) == ("masked sum", "4", "4", "2", "1.0")
    assert len(rows(text, "## Records")) == 2


def test_what_the_disk_costs_over_the_slower_of_wire_and_disk(tmp_path: Path) -> None:
    def result(store: str, masked_s: float, **own: object) -> dict[str, Any]:
        size = {"sites": 4, "params": 10**7, "ranks": [1] * 4, "lane_bits": 32, "degree": 0}
        return size | {"store": store, "masked_s": masked_s, "disk_bytes_s": 160e6} | own

    disk, memory = result("disk", 2.4), result("memory", 2.0, disk_bytes_s=1e3)
    other = result("memory", 0.1, params=10**6)
    assert rows(chr(10).join(_disk_against_memory([memory, disk, other])), "### What the disk costs") == [
        ["4", "10M", "2.4", "2", "1", "1.2", "≤ 1.3", "yes"]
    ]
    slow = result("disk", 6.0, disk_bytes_s=40e6)
    assert _disk_against_memory([slow, memory])[-1].endswith("| 4 | 1.5 | ≤ 1.3 | **no** |")
    assert not _disk_against_memory([disk, other])
    assert not _disk_against_memory([{"sites": 4}, memory])


def test_aims_stand_first_with_what_was_missed(tmp_path: Path) -> None:
    times = {"unmasked_s": 0.5, "unmasked_cpu_s": 1.9, "secure_share": 0.05, "stages_s": STAGES}
    growing = [records(0.1 * (9 + sites), sites=sites, params=10**6) for sites in (2, 4, 8)]
    text = page(store(tmp_path, records(work="training round", measured=times), *growing))
    assert text.index("## Aims, and what was reached") < text.index("## Method") < text.index("## Records")
    shared, speed, line, flat = rows(text, "Beside itself:\n")
    assert shared[1:] == ["5 (5 to 5); over the round without: 5.26 (5.26 to 5.26)", "≤ 3", "**no**"]
    assert line[0].startswith("1M parameters, 2 to 8 sites")
    assert line[3] == ("yes" if float(line[1]) <= 1.2 else "**no**")
    assert [speed[1], speed[3]] == [flat[1], flat[3]] == ["–", "not measured"]
    (pictured,) = [line for line in text.splitlines() if line.startswith("![Work of a site")]
    assert (tmp_path / pictured.split("(")[1].rstrip(")")).read_text().startswith("<?xml")
    assert (tmp_path / "images" / "work_of_a_site.png").stat().st_size > 10_000
    assert "| 8 | 7 | " in text.split("## From two sites to many")[1]


def test_two_builds_stand_side_by_side(tmp_path: Path) -> None:
    def line(build: str, turn: int, way: str = "", **more: object) -> dict[str, object]:
        command = "fedhpc bench latency --sites 4 --repeat 300"
        facts = {"compared": "one number", "build": build, "turn": turn, "way": way, "commit": f"{build}1234"}
        return facts | {"command": command, "load": 0.5, "date": "2026-12-01T10:00:00"} | more

    lines = [
        *(line("old", turn, sum_int_s=value) for turn, value in ((1, 4.0), (2, 5.0), (3, 4.0))),
        *(line("new", turn, "as it is", sum_int_s=value) for turn, value in ((1, 2.0), (2, 2.0), (3, 1.0))),
    ]
    (tmp_path / BUILDS).write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    text = page(tmp_path).split("## An older build beside this one", 1)[1]
    assert "old1234" in text
    (row,) = [row for row in text.split("\n## ", 1)[0].splitlines() if row.startswith("| `")]
    assert [cell.strip() for cell in row.strip("|").split(" | ")] == [
        "`bench latency --sites 4 --repeat 300`", "wall seconds of a sum, new over old", "0.4* (0.25 to 0.5)", "≤ 0.45",
        "yes",
    ]  # fmt: skip
