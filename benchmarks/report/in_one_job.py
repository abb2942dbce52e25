"""Masked sums in one MPI job: times, stages, sites of different sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.cells import row, short, table

_STAGES = ("ledger", "encode", "masks", "wire", "digest", "decode", "agree")


def sums(entries: list[dict[str, Any]], pictures: Mapping[str, str]) -> list[str]:
    """`entries`: files of results of sums."""
    if not entries:
        return []
    lines = [
        "",
        "## Masked sums in one job",
        "",
        "`plain` is one in-place float32 (or float64) MPI allreduce; `unmasked` is the same ring sum without masks;",
        "`masked` includes checking, the ledger's fingerprint (in memory), key agreement, masks, wire and decoding.",
        "The SHA-256 of the sum, which sites compare afterwards, is in neither (`digest` of the stages); it is in the",
        "wall time of every record. `extra` is the peak memory of a rank during the masked sum (VmHWM, shared memory",
        "included), less what it held before the vector was made, less the vector.",
        *table("command", "plain s", "unmasked s", "masked s", "masked/plain", "extra MiB", "verified"),
    ]
    for entry in entries:
        r = entry["result"]
        times = (f"{r[name]:.3f}" for name in ("plain_s", "unmasked_s", "masked_s"))
        more = f"{r['masked_over_plain']:.2f}", f"{r['extra_bytes'] / 2**20:.1f}", r["verified"]
        lines.append(row(f"`{short(entry['command'])}`", *times, *more))
    lines += [
        "",
        "Where the time goes, seconds per rank (mean over the ranks, median over repeats; where ranks outnumber cores",
        "a stage also holds the time that its rank waited for a core, and `wire` the time it waited for others):",
        *table("command", *_STAGES),
    ]
    for entry in entries:
        stages = entry["result"]["stages_s"]
        lines.append(row(f"`{short(entry['command'])}`", *(_seconds(stages.get(name)) for name in _STAGES)))
    lines += _processor_time(entries)
    if "stages" in pictures:
        lines += ["", f"![Stages of a sum of four sites, for each million parameters]({pictures['stages']})"]
    return lines + _uneven([entry for entry in entries if "sum_uneven_over_even" in entry["result"]])


def _processor_time(entries: list[dict[str, Any]]) -> list[str]:
    """Of all ranks; empty where all results are older than that."""
    measured = [entry for entry in entries if "cpu_real_round_s" in entry["result"]]
    lines = [
        "",
        "Processor seconds of all ranks: wall time on a shared machine is mostly waiting. `chunks` is the plain",
        "allreduce in chunks as a masked sum has them, the honest baseline. A real round has the hash of the sum,",
        "which `masked` lacks. `kernel` hid the vectors. Older results have none of this.",
        *table(
            *("command", "kernel", "chunks wall s", "plain cpu s", "chunks cpu s", "masked cpu s"),
            *("real round cpu s", "real round/plain", "real round/chunks", "beside"),
        ),
    ]
    for entry in measured:
        r = entry["result"]
        seconds = ("plain_chunked_s", "cpu_plain_s", "cpu_plain_chunked_s", "cpu_masked_s", "cpu_real_round_s")
        ratios = ("cpu_real_round_over_plain", "cpu_real_round_over_plain_chunked")
        cells = [f"`{short(entry['command'])}`", r.get("kernel", "–"), *(_seconds(r.get(name)) for name in seconds)]
        cells += [f"{r[name]:.2f}" if name in r else "–" for name in ratios]
        lines.append(row(*cells, r.get("old_commit") or "–"))
    return lines if measured else []


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _uneven(entries: list[dict[str, Any]]) -> list[str]:
    lines = [""]
    for entry in entries:
        r = entry["result"]
        lines.append(
            f"Sites of {' and '.join(map(str, r['ranks']))} ranks against {min(r['ranks'])} at each, masked sum: "
            f"{r['sum_uneven_over_even']:.2f} times as long."
        )
    return lines if entries else []


def one_number(entry: dict[str, Any]) -> list[str]:
    """Sums of one number."""
    r = entry["result"]
    return [
        "",
        "## One small sum",
        "",
        f"`{entry['command']}`: median of one `fed.sum` of one number over {r['sites']} sites, after joining.",
        *table("what", "ms"),
        row("a whole number (one masked sum), ledger in memory", f"{1e3 * r['sum_int_s']:.2f}"),
        row("the same, ledger on disk with its fsync", f"{1e3 * r['sum_int_s_with_fsync']:.2f}"),
        row("a float without a bound (two masked sums), ledger in memory", f"{1e3 * r['sum_float_unbounded_s']:.2f}"),
        "",
        "Without a bound every number of a float array costs 8 bytes more for each power of 2^8 that it may have, 263",
        "of float64 and 35 of float32: 63 kB for 30 columns, 8.6 MB for the 4096 numbers that have a scale each unless",
        "more are asked for.",
    ]
