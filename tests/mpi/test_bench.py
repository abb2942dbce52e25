"""`fedhpc bench` starts its own ranks and checks what it measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import FEDHPC, ROOT, call, mpi_words, mpirun

from fedhpc.bench.hardware import cpu_flags
from fedhpc.bench.record import KEYS
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import write_store
from fedhpc.data.tokens import write_tokens
from fedhpc.kernel.choice import running

TINY = {"vocabulary": 50, "tokenizer_sha256": "0" * 64, "context": 16, "width": 16, "layers": 2, "heads": 2}
LIBRARIES = {"fedhpc", "python", "numpy", "cryptography", "openssl", "mpi4py", "mpi", "machine"}


@pytest.mark.mpi
def test_a_sum_over_sites_of_different_sizes() -> None:
    words = ["bench", "sum", "--ranks", "1,2", "--params", "600000", "--repeat", "1", "--json"]
    result = json.loads(call([*FEDHPC, *words], timeout=60).ok().out)
    assert result["verified"] is True
    assert (result["ranks"], result["rails"]) == ([1, 2], [1, 2])
    assert result["sum_uneven_over_even"] == pytest.approx(result["masked_s"] / result["even_masked_s"])


def measured(folder: Path, *words: str, timeout: float = 60) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `fedhpc bench` prints with --json, and the lines that it appends; each is a whole record."""
    lines = folder / "lines.jsonl"
    done = call([*FEDHPC, "bench", *words, "--json", "--lines", str(lines)], timeout=timeout).ok()
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    for number, record in enumerate(records, 1):
        assert set(KEYS) <= set(record)
        assert record["verified"] is True
        assert record["wall_s"] > 0
        assert record["cpu_s"] > 0
        assert record["peak_bytes"] > 20 << 20  # a Python with NumPy
        assert record["command"] == f"fedhpc bench {' '.join(words)}"
        assert record["run_id"] == records[0]["run_id"]
        assert set(record["versions"]) >= LIBRARIES
        assert (record["kernel"], record["cpu_flags"]) == (running().name, cpu_flags())
        assert record["repeat"] == (number - 1) % record["repeats"] + 1
    result: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return result, records


@pytest.mark.mpi
def test_a_record_of_each_repeat_of_a_sum(tmp_path: Path) -> None:
    words = ["sum", "--sites", "2", "--params", "600000", "--repeat", "2", "--old-commit", "abc"]
    result, records = measured(tmp_path, *words)
    assert len(records) == 2
    assert result["old_commit"] == records[0]["old_commit"] == "abc"
    assert set(KEYS) <= set(result)
    assert [r["measured"]["masked_s"] for r in records] == [r["masked_s"] for r in result["repeats"]]
    assert result["wall_s"] == pytest.approx(sum(r["wall_s"] for r in records) / 2)
    assert all(r["wall_s"] >= r["measured"]["masked_s"] for r in records)  # with the SHA-256 of the sum
    assert result["peak_bytes"] > result["peak_rss_bytes"]  # of both ranks, of one
    assert records[0]["settings"]["lane_bits"] == 32
    cpu = {name: result[name] for name in ("cpu_plain_s", "cpu_plain_chunked_s", "cpu_masked_s", "cpu_real_round_s")}
    assert 0 < cpu["cpu_masked_s"] < cpu["cpu_real_round_s"]  # the hash of the sum
    assert result["cpu_real_round_over_plain"] == pytest.approx(cpu["cpu_real_round_s"] / cpu["cpu_plain_s"])
    assert result["minima"]["plain_chunked_s"] == min(r["measured"]["plain_chunked_s"] for r in records)
    assert result["suite"] == records[0]["suite"] == "blake3"


@pytest.mark.mpi
def test_a_record_of_a_relayed_sum_counts_the_relay(tmp_path: Path) -> None:
    words = [
        "sum",
        "--exchange",
        "https",
        "--sites",
        "2",
        "--params",
        "3000000",
        "--repeat",
        "1",
        "--durable",
        "memory",
    ]
    result, (record,) = measured(tmp_path, *words)
    assert record["measured"]["relay_cpu_s"] > 0
    assert record["cpu_s"] > record["measured"]["relay_cpu_s"]
    assert record["peak_bytes"] > result["relay_peak_rss_bytes"] + result["peak_rss_bytes"]
    assert result["cpu_all_s"] == record["cpu_s"]
    assert result["cpu_all_over_tls"] == pytest.approx(result["cpu_all_s"] / result["cpu_tls_s"])
    assert result["disk_bytes_s"] > 0
    assert result["store"] == record["store"] == "memory"  # the relay was told so, on any disk


@pytest.mark.mpi
def test_a_site_that_is_lost_is_waited_for_and_done_without(tmp_path: Path) -> None:
    words = ["sum", "--exchange", "https", "--sites", "4", "--params", "3000", "--repeat", "2", "--lost", "1"]
    result, records = measured(tmp_path, *words, timeout=240)
    assert "plain_s" not in result
    assert result["upload_s"] >= 30
    for record in records:
        assert record["work"] == "relayed masked sum, 1 lost"
        assert record["wall_s"] > record["settings"]["upload_s"] == result["upload_s"]
        beyond = record["wall_s"] - record["settings"]["upload_s"]
        assert record["measured"]["beyond_upload_s"] == pytest.approx(beyond)
        assert record["measured"]["unmasked_s"] > 0


@pytest.mark.mpi
def test_a_far_and_narrow_line_is_not_passed_by(tmp_path: Path) -> None:
    words = ["sum", "--exchange", "https", "--sites", "2", "--params", "250000", "--repeat", "1"]
    result, (record,) = measured(tmp_path, *words, "--latency-ms", "50", "--mbit-s", "8", timeout=120)
    assert (record["settings"]["latency_ms"], record["settings"]["mbit_s"]) == (50.0, 8.0)
    assert not [name for name in result if "tls_socket" in name or "plain" in name]
    # A megabyte up and a megabyte down at a megabyte a second; every message waits for the line.
    assert min(record["wall_s"], record["measured"]["unmasked_s"]) > 2 + 0.05 * result["round_trips_exposed"]


@pytest.mark.mpi
def test_a_sparse_mask_graph_with_thresholds_of_its_own(tmp_path: Path) -> None:
    words = ["sum", "--sites", "8", "--params", "1000", "--repeat", "1", "--degree", "4"]
    result, (record,) = measured(tmp_path, *words, "--colluders", "1", "--threshold", "6")
    assert {k: record["settings"][k] for k in ("degree", "colluders", "threshold")} == {
        "degree": 4,
        "colluders": 1,
        "threshold": 6,
    }
    assert result["verified"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--exchange", "https", "--lost", "2"], "of 4 sites at most 1 may be lost"),
        (["--exchange", "https", "--lost", "1", "--ranks-per-site", "2"], "one rank at each site"),
        (["--lost", "1"], "add --exchange https"),
        (["--mbit-s", "10"], "add --exchange https"),
        (["--folder", "/tmp"], "add --exchange https"),
        (["--durable", "memory"], "add --exchange https"),
        (["--exchange", "https", "--folder", "/nowhere"], "there is no such folder"),
        (["--exchange", "https", "--patience-s", "9"], "add --lost"),
    ],
)
def test_losses_and_lines_that_cannot_be(words: list[str], told: str) -> None:
    done = call([*FEDHPC, "bench", "sum", *words])
    assert done.code == 64
    assert told in done.err


@pytest.mark.mpi
def test_small_sums_are_recorded_in_stretches(tmp_path: Path) -> None:
    result, records = measured(tmp_path, "latency", "--sites", "2", "--repeat", "12")
    assert len(records) == 5
    assert (result["repeat"], result["params"], result["ranks"]) == (12, 1, [1, 1])


@pytest.mark.mpi
def test_masked_and_unmasked_rounds_train_the_same_model(tmp_path: Path) -> None:
    words = ["round", "--sites", "2", "--ranks-per-site", "2", "--rounds", "1", "--repeat", "1"]
    result, (record,) = measured(tmp_path, *words, timeout=100)
    assert result["params"] == 16 * 9 + 16 + 32 * 16 * 9 + 32 + 32 * 4 * 10 + 10
    assert record["ranks"] == [2, 2]
    share = 1 - record["measured"]["unmasked_cpu_s"] / record["cpu_s"]
    assert result["secure_share"] == record["measured"]["secure_share"] == pytest.approx(share)
    assert result["stages_s"]["encode"] + result["stages_s"]["masks"] > 0  # one pass where a compiled kernel runs
    assert result["stages_s"]["checkpoint"] > 0


def test_masks_alone(tmp_path: Path) -> None:
    result, records = measured(tmp_path, "masks", "--sites", "2,5", "--params", "100001", "--repeat", "2")
    assert [(r["sites"], r["repeat"]) for r in records] == [(2, 1), (2, 2), (5, 1), (5, 2)]
    assert [row["streams"] for row in result["masks"]] == [1, 4]
    row = result["masks"][1]
    assert row["wall_s"] >= row["inspect_s"] > 0
    if row["stream_bytes_per_s"] is not None:  # the difference of two times may be none on a busy machine
        assert row["stream_bytes_per_s"] == pytest.approx(4 * 400016 / row["masks_s"], rel=1e-4)


def test_a_kernel_that_there_is_none_of_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHPC_KERNEL", "magic")
    for words in (["masks"], ["sum", "--sites", "2"]):
        done = call([*FEDHPC, "bench", *words])
        done.refused(64, "FEDHPC_KERNEL is 'magic'", "python")
        assert "starting" not in done.err


def test_site_counts_that_are_none() -> None:
    for words in ("1", "2,", "2,x", "1001"):
        call([*FEDHPC, "bench", "masks", "--sites", words]).refused(64, f"--sites {words}", "2,4,8")


def test_reads_of_a_store(tmp_path: Path) -> None:
    result, _ = measured(tmp_path, "data", "--rows", "5001", "--columns", "3", "--batch", "50", "--repeat", "1")
    assert (result["rows"], result["row_bytes"], result["params"]) == (5001, 12, 3 * 5001)
    assert result["batches_rows_per_s"] == pytest.approx(5001 / result["batches_s"])
    assert result["in_order_bytes_per_s"] == pytest.approx(12 * 5001 / result["in_order_s"])


def test_reads_of_a_sites_own_store(tmp_path: Path) -> None:
    store = tmp_path / "site.h5"
    columns = FeatureSet((Feature("a"), Feature("b")), Label("class"), (2,))
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    labels, ids = np.zeros(10, np.int64), np.zeros((10, 32), np.uint8)
    write_store(store, site="mine", feature_set=columns, features=values, labels=labels, row_ids=ids)
    result, _ = measured(tmp_path, "data", "--store", str(store), "--repeat", "1")
    assert (result["rows"], result["row_bytes"]) == (10, 8)
    lines = tmp_path / "lines.jsonl"
    call([*FEDHPC, "bench", "data", "--store", str(store), "--repeat", "2", f"--lines={lines}"]).ok()  # appends
    assert [json.loads(line)["repeat"] for line in lines.read_text().splitlines()] == [1, 1, 2]


def test_lines_that_cannot_be_written(tmp_path: Path) -> None:
    words = ["bench", "data", "--rows", "10", "--repeat", "1", "--lines", str(tmp_path / "no" / "lines.jsonl")]
    call([*FEDHPC, *words]).refused(74, "lines.jsonl")


def backend(folder: Path, job: int, **case: Any) -> dict[str, Any]:
    """What `fedhpc bench backends` measures of a tiny model; `job`: ranks of the job."""
    store = folder / "tokens.h5"
    if not store.exists():
        texts = np.random.default_rng(1).integers(0, 50, (20, 17))
        write_tokens(store, iter(texts), vocabulary=50, tokenizer_sha256="0" * 64)
    text = json.dumps({"store": str(store), "options": TINY, "steps": 1} | case)
    done = mpirun(job, [ROOT / "fedhpc" / "bench" / "backend_ranks.py", text], timeout=100, warm=True).ok()
    found: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return found


@pytest.mark.mpi
def test_memory_and_moves_of_a_backend(tmp_path: Path) -> None:
    serial = backend(tmp_path, 2, backend="serial", ranks=1, windows=1, alternations=0)
    found = backend(tmp_path, 3, backend="fsdp", ranks=2, windows=1, alternations=0)  # beside what the first one wrote
    assert serial["model_bytes"] == found["model_bytes"]
    block = 4 * 16 + 16 * 48 + 48 + 16 * 16 + 16 + 16 * 64 + 64 + 64 * 16 + 16
    assert found["model_bytes"] == 4 * (50 * 16 + 16 * 16 + 2 * block + 2 * 16)
    assert found["largest_tensor_over_v"] == 4 * 16 * 64 / found["model_bytes"]
    assert math.isfinite(found["loss"])
    assert found["verified"] is True
    assert len(found["model_sha256"]) == 64
    assert min(found["moves_s"], found["step_s"], found["bytes_up"]) > 0


@pytest.mark.mpi
def test_speed_of_a_backend(tmp_path: Path) -> None:
    found = backend(tmp_path, 1, backend="serial", ranks=1, windows=2, alternations=1)
    ours, plain = found["samples_per_cpu_s"], found["plain_samples_per_cpu_s"]
    assert found["speed_over_plain"] == pytest.approx(ours / plain)
    (turn,) = found["repeats"]
    assert found["params"] > 0
    assert turn["verified"] is True
    assert turn["speed_over_plain"] == pytest.approx(turn["plain_cpu_s"] / turn["cpu_s"])


@pytest.mark.mpi
@pytest.mark.parametrize(
    "words", [["sum", "--sites", "3", "--params", "300000"], ["round", "--sites", "3", "--rounds", "1"]]
)
def test_the_ranks_of_a_launcher_are_measured(tmp_path: Path, words: list[str]) -> None:
    """As srun starts them over the nodes of a job: no rank starts others, and rank 0 alone tells the result."""
    lines = tmp_path / "lines.jsonl"
    command = ["-m", "fedhpc", "bench", *words, "--repeat", "1", "--json", "--lines", str(lines)]
    done = call(mpi_words(3, command), cwd=tmp_path, timeout=120).ok()
    (record,) = [json.loads(line) for line in lines.read_text().splitlines()]
    assert (record["verified"], record["settings"]["nodes"], len(record["ranks"])) == (True, 1, 3)
    assert record["command"].startswith(f"mpirun -n 3 python -m mpi4py -m fedhpc bench {words[0]} ")
    assert len([line for line in done.out.splitlines() if line.startswith("{")]) == 1
    assert "starting" not in done.err
    assert list(tmp_path.iterdir()) == [lines], "no folder is left"


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sum", "--sites", "3"], "a launcher started 2 ranks, and this measurement has 3"),
        (["sum", "--exchange", "https"], "a launcher started it 2 times"),
        (["masks"], "a launcher started it 2 times"),
        (["backends"], "a launcher started it 2 times"),
    ],
)
def test_other_ranks_than_those_of_the_measurement_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    done = call(mpi_words(2, ["-m", "fedhpc", "bench", *words]), cwd=tmp_path, timeout=60)
    assert done.code == 64
    assert done.err.count(said) == 1
