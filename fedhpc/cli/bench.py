"""`fedhpc bench`: measurements on this machine, each with ranks of its own, or with those of a launcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click


def _figures(command: Callable[..., None]) -> Callable[..., None]:
    """How every measurement gives its figures."""
    lines = click.option(
        "--lines",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Append a line of JSON for each repeat.",
    )
    return click.option("--json", "as_json", is_flag=True, help="Print only one JSON object.")(lines(command))


@click.group("bench")
def bench() -> None:
    """Measure masked sums and training rounds on this machine.

    Each starts its own ranks. Over the nodes of a batch job, `srun python -m mpi4py -m fedhpc bench ...` measures with
    the tasks of srun (sum, latency, round), as many as there are ranks.

    Compare figures of one run only: machines are noisy. --json and --lines give a record of each measurement, with
    seconds (wall_s), processor seconds of all processes (cpu_s), memory (peak_bytes), and whether the result was
    checked (verified).
    """


@bench.command("sum", short_help="Time one masked sum, and what the wire can do.")
@click.option("--sites", type=click.IntRange(2, 100), default=4, show_default=True)
@click.option("--params", type=click.IntRange(1), default=10_000_000, show_default=True, help="Numbers in the vector.")
@click.option("--ranks-per-site", type=click.IntRange(1), default=1, show_default=True)
@click.option("--ranks", help="Ranks of each site, such as 2,3; in place of --sites and --ranks-per-site.")
@click.option("--exchange", type=click.Choice(["mpi", "https"]), default="mpi", show_default=True)
@click.option("--lane-bits", type=click.Choice(["32", "64"]), default="32", show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@click.option("--degree", type=click.IntRange(0), default=0, show_default=True, help="Mask partners; 0 = all.")
@click.option("--colluders", type=click.IntRange(1), help="As [secure] colluders.  [default: as there]")
@click.option("--threshold", type=click.IntRange(2), help="As [secure] threshold.  [default: as there]")
@click.option(
    "--suite", type=click.Choice(["blake3", "sha256"]), default="blake3", show_default=True, help="Of hashes."
)
@click.option("--rails", default="auto", show_default=True, help="Ranks of a site that carry a part.")
@click.option("--chunk-bytes", type=click.IntRange(4096), default=16 << 20, show_default=True)
@click.option("--overlap", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("--folder", type=click.Path(file_okay=False), help="https: where the relay keeps its objects.")
@click.option(
    "--durable", type=click.Choice(["disk", "memory"]), help="https: as `fedhpc relay admit`.  [default: disk]"
)
@click.option("--latency-ms", type=click.FloatRange(0), default=0.0, help="https: of a round trip to the relay.")
@click.option("--mbit-s", type=click.FloatRange(0), default=0.0, help="https: of each site's line, each direction.")
@click.option("--lost", type=click.IntRange(0), default=0, help="https: sites that vanish before they send.")
@click.option(
    "--patience-s",
    type=click.FloatRange(0.1),
    help="--lost: how long sites that are late are waited for, beside what vectors take.  [default: 30]",
)
@click.option("--old-commit", default="", metavar="TEXT", help="What build the figures will stand beside; only noted.")
@_figures
def sum_(
    sites: int,
    params: int,
    ranks_per_site: int,
    ranks: str | None,
    exchange: str,
    lane_bits: str,
    repeat: int,
    degree: int,
    colluders: int | None,
    threshold: int | None,
    suite: str,
    rails: str,
    chunk_bytes: int,
    overlap: str,
    folder: str | None,
    durable: str | None,
    latency_ms: float,
    mbit_s: float,
    lost: int,
    patience_s: float | None,
    old_commit: str,
    lines: Path | None,
    as_json: bool,
) -> None:
    """Time one sum over the sites: plain float allreduce, whole and in chunks, ring sum without masks, masked sum.

    With --exchange https a relay and the sites are processes of their own, and "plain" is the time that bare TLS
    sockets take for the same bytes; `disk_bytes_s` is what the relay's folder can write and fsync. Every repeat has
    fresh keys and fresh random data, its result is checked against an independent sum, and every second one goes the
    other way round. Times are medians; a time ends when the slowest rank is done. `cpu_…` are processor seconds of all
    processes; `cpu_real_round_s` includes the hash of the sum, which masked_s leaves out. Where sites have different
    numbers of ranks, sum_uneven_over_even compares with as many at each as the smallest has.

    With --latency-ms or --mbit-s a proxy on this machine makes a line of that length or width between each site and the
    relay. With --lost the last sites vanish, in every repeat, once they share masks with the others: the time includes
    the wait for their vectors (`upload_s`) and the recovery. A site that is there must send within that wait, or the
    measurement fails.
    """
    from fedhpc.bench.record import origin
    from fedhpc.bench.start import measure_ranks
    from fedhpc.bench.sum_request import check_sum
    from fedhpc.errors import ConfigError

    begun = origin()
    of_sites = check_sum(click.get_current_context().params)
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"--folder {folder}: there is no such folder", "the relay keeps its objects there")
    secure = {"colluders": colluders, "threshold": threshold, "suite": suite}
    secure = {name: value for name, value in secure.items() if value is not None}
    case: dict[str, Any] = {
        "ranks": of_sites,
        "params": params,
        "lane_bits": int(lane_bits),
        "repeat": repeat,
        "degree": degree,
        "secure": "".join(f"{name} = {value!r}\n" for name, value in secure.items()),
    }
    if exchange == "https":
        from fedhpc.bench.relayed_sum import PATIENCE_S, Case, measure

        case |= {"latency_ms": latency_ms, "mbit_s": mbit_s, "patience_s": patience_s or PATIENCE_S}
        relayed = Case(**case, folder=folder, lost=lost, durable=durable or "disk")
        work = "relayed masked sum" + (f", {lost} lost" if lost else "")
        _show(begun.complete(measure(relayed), work, old_commit=old_commit, **secure), lines, as_json)
        return
    case |= {"chunk_bytes": chunk_bytes, "overlap": overlap, "rails": rails if rails == "auto" else int(rails)}
    result = measure_ranks("fedhpc.bench.sum_ranks", sum(of_sites), case)
    _show(begun.complete(result, "masked sum", old_commit=old_commit, **secure), lines, as_json)


@bench.command("latency", short_help="Time a sum of one number.")
@click.option("--sites", type=click.IntRange(2, 100), default=4, show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=200, show_default=True)
@_figures
def latency(sites: int, repeat: int, lines: Path | None, as_json: bool) -> None:
    """Time `fed.sum` of one number after joining, with the ledger in memory and on disk."""
    from fedhpc.bench.record import origin
    from fedhpc.bench.start import measure_ranks

    begun = origin()
    result = measure_ranks("fedhpc.bench.latency_ranks", sites, {"sites": sites, "repeat": repeat})
    _show(begun.complete(result, "sum of one number", params=1, ranks=[1] * sites), lines, as_json)


@bench.command("round", short_help="Time training rounds, with masks and without.")
@click.option("--sites", type=click.IntRange(2, 64), default=4, show_default=True)
@click.option("--ranks-per-site", type=click.IntRange(1), default=1, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Of local training in a round.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Measured in each repeat.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@_figures
def round_(
    sites: int, ranks_per_site: int, epochs: int, rounds: int, repeat: int, lines: Path | None, as_json: bool
) -> None:
    """Time a whole training round of the digits example: evaluation, training, sum, checkpoint.

    Each repeat is a fresh run with masks and one without (`unmasked_s`, `unmasked_cpu_s`), in turn; their first round
    is not counted, and both must end with the same model. `secure_share` is the part of a round's processor time that
    secure aggregation takes: (masked - unmasked) / masked.
    """
    from fedhpc.bench.digits_round import measure
    from fedhpc.bench.record import origin

    begun = origin()
    result = measure(sites=sites, ranks_per_site=ranks_per_site, epochs=epochs, rounds=rounds, repeat=repeat)
    _show(begun.complete(result, "training round"), lines, as_json)


@bench.command("masks", short_help="Time masks and encoding alone.")
@click.option("--sites", default="2,4,8,16,32", show_default=True, help="Site counts, one after the other.")
@click.option("--params", type=click.IntRange(1), default=10_000_000, show_default=True, help="Numbers in the vector.")
@click.option("--lane-bits", type=click.Choice(["32", "64"]), default="32", show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@_figures
def masks(sites: str, params: int, lane_bits: str, repeat: int, lines: Path | None, as_json: bool) -> None:
    """Time what one site does before it sends: check and fingerprint, encoding, a mask stream for each other site.

    One process on one core; no other site and no wire. Rates: bytes of the vector checked and encoded, and bytes of all
    streams made and added, in a second. The masks of all sites must cancel, and the vector must come back.
    """
    from fedhpc.bench.record import origin
    from fedhpc.bench.start import measure_alone

    begun = origin()
    case = {"sites": site_counts(sites), "params": params, "lane_bits": int(lane_bits), "repeat": repeat}
    result = measure_alone("fedhpc.bench.masks_alone", case)
    rows = [begun.complete(row, "masks and encoding") for row in result["masks"]]
    _show_rows(result | {"masks": rows}, rows, lines, as_json)


@bench.command("data", short_help="Time how a site reads its data store.")
@click.option("--store", type=click.Path(exists=True, dir_okay=False), help="A site's own; else one is written.")
@click.option("--rows", type=click.IntRange(1), default=50_000, show_default=True, help="Of the one that is written.")
@click.option("--columns", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Rows read at a time.")
@click.option(
    "--memory-mib", type=click.IntRange(0), default=256, show_default=True, help="As [compute] data_memory_mib."
)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@_figures
def data(
    store: str | None,
    rows: int,
    columns: int,
    batch: int,
    memory_mib: int,
    repeat: int,
    lines: Path | None,
    as_json: bool,
) -> None:
    """Time what it takes a site to read its HDF5 store.

    It is opened with all its checks, which read every value, read once in order, and once in batches of rows drawn at
    random, as training reads it: a store that fits into --memory-mib is kept there, of a larger one many batches are
    read at once. The file is in the kernel's cache where memory suffices. Some batches are compared with what h5py
    reads row by row.
    """
    from fedhpc.bench.record import origin
    from fedhpc.bench.start import measure_alone

    begun = origin()
    case = {
        "store": store,
        "rows": rows,
        "columns": columns,
        "batch": batch,
        "memory_mib": memory_mib,
        "repeat": repeat,
    }
    _show(begun.complete(measure_alone("fedhpc.bench.store_reads", case), "reading a store"), lines, as_json)


@bench.command("backends", short_help="Measure the backends of a site.")
@click.option("--backends", default="serial,ddp,fsdp,mpi", show_default=True)
@click.option("--ranks", type=click.IntRange(2), default=4, show_default=True, help="Of a site; serial has one.")
@click.option("--params", type=click.IntRange(1_000_000), default=100_000_000, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Between two looks at the clock.")
@click.option("--alternations", type=click.IntRange(1), default=5, show_default=True)
@_figures
def backends(
    backends: str, ranks: int, params: int, steps: int, alternations: int, lines: Path | None, as_json: bool
) -> None:
    """Measure what each backend takes to train a transformer at one site and to sum it with another.

    Memory is what a rank holds at most (VmHWM), with glibc told to give back what is free: `init_peak_over_v` while the
    first model is made, `added_bytes` what rounds and their checkpoints add to training, over V, the bytes of the
    model. `moves_s` is the time to read the model out of the backend by ranges and to write it back, `step_s` of an
    optimiser step of one sequence of 128 tokens at each rank. A sample is a sequence; processor time is that of all
    ranks.
    """
    from fedhpc.bench.backends import measure
    from fedhpc.bench.record import origin

    begun = origin()
    result = measure(check_backends(backends), ranks, params, steps, alternations)
    rows = [begun.complete(row, f"training, {row['backend']}") for row in result["backends"]]
    _show_rows(result | {"backends": rows}, rows, lines, as_json)


def site_counts(text: str) -> list[int]:
    """Of --sites 2,4,8. Raises ConfigError."""
    from fedhpc.errors import ConfigError

    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and 2 <= int(word) <= 1000 for word in words):
        raise ConfigError(f"--sites {text}", "one or more numbers of sites from 2 to 1000, such as 2,4,8")
    return [int(word) for word in words]


def check_backends(text: str) -> list[str]:
    """Of --backends serial,ddp. Raises ConfigError."""
    from fedhpc.bench.backends import BACKENDS
    from fedhpc.errors import ConfigError

    names = text.split(",")
    if unknown := [name for name in names if name not in BACKENDS]:
        raise ConfigError(f"--backends {text}: there is no '{unknown[0]}'", f"one or more of {','.join(BACKENDS)}")
    return names


def _show(result: Mapping[str, Any], lines: Path | None, as_json: bool) -> None:
    _show_rows(result, [result], lines, as_json)


def _show_rows(whole: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], lines: Path | None, as_json: bool) -> None:
    """`rows`: the complete results in `whole`."""
    import json

    from fedhpc.bench.record import append_lines

    click.echo(json.dumps(whole) if as_json else "\n\n".join(_table(row) for row in rows))
    if lines is not None:
        append_lines(lines, rows)


def _table(result: Mapping[str, Any]) -> str:
    """One line per figure; what each repeat took is for --json and --lines."""
    lines = []
    for name, value in result.items():
        if name == "repeats":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
        elif name == "cpu_flags":
            value = " ".join(value)
        elif isinstance(value, float):
            value = f"{value:.4g}"
        elif name.endswith("_bytes"):
            value = f"{value} ({value / 2**20:.1f} MiB)"
        lines.append(f"{name:20} {value}")
    return "\n".join(lines)
