"""`fedhpc bench`: measurements on this machine; each starts its own ranks."""

from __future__ import annotations

from typing import Any

import click


@click.group("bench")
def bench() -> None:
    """Measure masked sums on this machine. Compare figures of one run only: machines are noisy."""


@bench.command("sum", short_help="Time one masked sum, and what the wire can do.")
@click.option("--sites", type=click.IntRange(2, 100), default=4, show_default=True)
@click.option("--params", type=click.IntRange(1), default=10_000_000, show_default=True, help="Numbers in the vector.")
@click.option("--ranks-per-site", type=click.IntRange(1), default=1, show_default=True)
@click.option("--ranks", help="Ranks of each site, such as 2,3; in place of --sites and --ranks-per-site.")
@click.option("--exchange", type=click.Choice(["mpi", "https"]), default="mpi", show_default=True)
@click.option("--lane-bits", type=click.Choice(["32", "64"]), default="32", show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@click.option("--degree", type=click.IntRange(0), default=0, show_default=True, help="Mask partners; 0 = all.")
@click.option("--rails", default="auto", show_default=True, help="Ranks of a site that carry a part.")
@click.option("--chunk-bytes", type=click.IntRange(4096), default=16 << 20, show_default=True)
@click.option("--overlap", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("--folder", type=click.Path(exists=True), help="https: where the relay keeps its objects.")
@click.option("--json", "as_json", is_flag=True, help="Print only one JSON object.")
def sum_(
    sites: int,
    params: int,
    ranks_per_site: int,
    ranks: str | None,
    exchange: str,
    lane_bits: str,
    repeat: int,
    degree: int,
    rails: str,
    chunk_bytes: int,
    overlap: str,
    folder: str | None,
    as_json: bool,
) -> None:
    """Time one sum over the sites: plain float allreduce, ring sum without masks, masked sum.

    With --exchange https a relay and the sites are processes of their own, and "plain" is the time that bare TLS
    sockets take for the same bytes. Every repeat has fresh keys and fresh random data, and its result is checked
    against an independent sum. Times are medians; a time ends when the slowest rank is done. Where sites have different
    numbers of ranks, sum_uneven_over_even compares with as many at each as the smallest has.
    """
    import json

    from fedhpc.bench.start import measure_ranks
    from fedhpc.errors import ConfigError

    of_sites = [ranks_per_site] * sites if ranks is None else _ranks(ranks)
    if rails != "auto" and not (rails.isdigit() and 1 <= int(rails) <= min(of_sites)):
        raise ConfigError(f"--rails {rails}", f"auto, or 1 to {min(of_sites)}")
    if chunk_bytes % 16:
        raise ConfigError(f"--chunk-bytes {chunk_bytes}", "a multiple of 16")
    if exchange == "https":
        from fedhpc.bench.relayed_sum import measure

        result = measure(
            params=params,
            lane_bits=int(lane_bits),
            repeat=repeat,
            degree=degree,
            ranks=of_sites,
            folder=folder,
        )
        click.echo(json.dumps(result) if as_json else _table(result))
        return
    case = {
        "ranks": of_sites,
        "params": params,
        "lane_bits": int(lane_bits),
        "repeat": repeat,
        "degree": degree,
        "chunk_bytes": chunk_bytes,
        "overlap": overlap,
        "rails": rails if rails == "auto" else int(rails),
    }
    result = measure_ranks("fedhpc.bench.sum_ranks", sum(of_sites), case)
    click.echo(json.dumps(result) if as_json else _table(result))


@bench.command("latency", short_help="Time a sum of one number.")
@click.option("--sites", type=click.IntRange(2, 100), default=4, show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=200, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print only one JSON object.")
def latency(sites: int, repeat: int, as_json: bool) -> None:
    """Time `fed.sum` of one number after joining, with the ledger in memory and on disk."""
    import json

    from fedhpc.bench.start import measure_ranks

    result = measure_ranks("fedhpc.bench.latency_ranks", sites, {"sites": sites, "repeat": repeat})
    click.echo(json.dumps(result) if as_json else _table(result))


@bench.command("backends", short_help="Measure the backends of a site.")
@click.option("--backends", default="serial,ddp,fsdp,mpi", show_default=True)
@click.option("--ranks", type=click.IntRange(2), default=4, show_default=True, help="Of a site; serial has one.")
@click.option("--params", type=click.IntRange(10_000_000), default=100_000_000, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Between two looks at the clock.")
@click.option("--alternations", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print only one JSON object.")
def backends(backends: str, ranks: int, params: int, steps: int, alternations: int, as_json: bool) -> None:
    """Measure what each backend takes to train a transformer at one site and to sum it with another.

    Memory is what a rank holds at most (VmHWM), with glibc told to give back what is free: `init_peak_over_v` while the
    first model is made, `added_bytes` what rounds and their checkpoints add to training, over V, the bytes of the
    model. `moves_s` is the time to read the model out of the backend by ranges and to write it back, `step_s` of an
    optimiser step of one sequence of 128 tokens at each rank. A sample is a sequence; processor time is that of all
    ranks.
    """
    import json

    from fedhpc.bench.backends import BACKENDS, measure
    from fedhpc.errors import ConfigError

    names = backends.split(",")
    unknown = [name for name in names if name not in BACKENDS]
    if unknown:
        raise ConfigError(f"--backends {backends}: there is no '{unknown[0]}'", f"one or more of {','.join(BACKENDS)}")
    result = measure(names, ranks, params, steps, alternations)
    if as_json:
        click.echo(json.dumps(result))
        return
    for row in result["backends"]:
        click.echo(_table(row) + "\n")


def _ranks(text: str) -> list[int]:
    from fedhpc.errors import ConfigError

    words = text.split(",")
    if not (len(words) >= 2 and all(word.isascii() and word.isdigit() and int(word) for word in words)):
        raise ConfigError(f"--ranks {text}", "the number of ranks of each of two or more sites, such as 2,3")
    return [int(word) for word in words]


def _table(result: dict[str, Any]) -> str:
    """One line per figure."""
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.4g}"
        elif name.endswith("_bytes"):
            value = f"{value} ({value / 2**20:.1f} MiB)"
        lines.append(f"{name:20} {value}")
    return "\n".join(lines)
