"""`fedhpc demo heart`: writes the federation, starts the ranks, prints the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedhpc.demo.fresh_folder import fresh_folder
from fedhpc.demo.heart.federation import RANKS_PER_SITE, write_heart_federation
from fedhpc.demo.heart.hospitals import HOSPITALS
from fedhpc.demo.heart.relayed import run_relayed
from fedhpc.demo.heart.scores import RESULT_FILE
from fedhpc.mpi.launch import launcher_command, launcher_environment
from fedhpc.mpi.own_ranks import run_ranks


def run_demo(out: Path | None, *, seed: int, rounds: int, splits: int, exchange: str) -> dict[str, Any]:
    """Train and compare; gives the result for --json. Raises RanksFailedError if a rank fails."""
    directory = fresh_folder(out, "heart")
    if exchange == "https":
        run_relayed(directory, seed=seed, rounds=rounds, splits=splits, ranks=RANKS_PER_SITE)
    else:
        _run_in_one_job(directory, seed=seed, rounds=rounds, splits=splits)
    result: dict[str, Any] = json.loads((directory / "run" / RESULT_FILE).read_text())
    return result


def _run_in_one_job(directory: Path, *, seed: int, rounds: int, splits: int) -> None:
    """All sites as ranks of one MPI job."""
    write_heart_federation(directory, rounds=rounds, seed=seed)
    ranks = len(HOSPITALS) * RANKS_PER_SITE
    environment, note = launcher_environment()
    print(f"starting {ranks} ranks, {RANKS_PER_SITE} for each of {len(HOSPITALS)} sites; {note}", flush=True)
    module = ["-m", "mpi4py", "-m", "fedhpc.demo.heart.compare", str(directory), str(splits)]
    run_ranks([[*launcher_command(ranks), sys.executable, *module]], environment)


def print_table(result: dict[str, Any]) -> None:
    """Print the comparison as a table, and where the files are."""
    table = Table(title=f"Held-out rows of all sites, {result['splits']} splits")
    for column in ("trained on", "accuracy", "AUC"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    methods: list[tuple[str, tuple[str, ...]]] = [(f"{site} alone", ("alone", site)) for site in result["sites"]]
    methods += [("mean of the sites alone", ("alone_mean",)), ("federated, masked sums", ("federated",))]
    methods += [("pooled in one place", ("pooled",))]
    for label, path in methods:
        table.add_row(label, *(_mean_sd(result[metric], path) for metric in ("accuracy", "auc")))
    Console(width=90).print(table)
    print(
        f"{result['seconds_per_round']:.3f} s and {result['bytes_per_site_per_round']} bytes per site and round "
        f"({result['rounds']} rounds, {len(result['sites'])} sites x {result['ranks_per_site']} ranks)"
    )
    print(f"final model sha256 {result['final_model_sha256']}")
    print(f"run directory {result['run']}  (fedhpc report {result['run']})", flush=True)


def _mean_sd(summary: dict[str, Any], path: tuple[str, ...]) -> str:
    mean, deviation = summary, summary["sd"]
    for key in path:
        mean, deviation = mean[key], deviation[key]
    return "-" if mean is None else f"{mean:.3f} ± {deviation:.3f}"
