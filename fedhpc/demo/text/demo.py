"""`fedhpc demo text`: writes the federation, starts the ranks, then the baselines, and prints the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedhpc.app.telemetry import METRICS_FILE, read_metrics
from fedhpc.demo.fresh_folder import fresh_folder
from fedhpc.demo.text.federation import SHARDED, write_text_federation
from fedhpc.demo.text.ontology import CITATION, LICENCE, read_ontology
from fedhpc.mpi.launch import launcher_command, launcher_environment
from fedhpc.mpi.own_ranks import run_ranks

RESULT_FILE = "demo.json"


def run_demo(out: Path | None, *, seed: int, rounds: int) -> dict[str, Any]:
    """Train and compare; gives the result for --json. Raises RanksFailedError if a rank fails."""
    directory = fresh_folder(out, "text")
    ontology = read_ontology()
    print(f"Human Phenotype Ontology, release {ontology.release}; licence: {LICENCE}\n{CITATION}")
    for site, definitions in ontology.definitions.items():
        print(f"  {site}: {len(definitions)} definitions, {sum(map(len, definitions))} characters")
    write_text_federation(directory, ontology, rounds=rounds, seed=seed)
    sites = list(ontology.definitions)
    ranks = len(sites) + 1
    environment, note = launcher_environment()
    print(f"starting {ranks} ranks, two of them for {SHARDED}; {note}", flush=True)
    words = ["-m", "mpi4py", "-m", "fedhpc", "run", str(directory / "federation.toml")]
    words += ["--sites", str(directory / "sites"), "--out", str(directory / "run")]
    run_ranks([[*launcher_command(ranks), sys.executable, *words]], environment)
    federated = read_metrics(directory / "run" / sites[0] / METRICS_FILE)[-1]
    print("the same steps without the others, and with all texts in one place", flush=True)
    baseline = [sys.executable, "-m", "fedhpc.demo.text.baselines", str(directory)]
    outputs = run_ranks([[*baseline, "pooled"], [*baseline, "alone"]], environment, keep_output=True)
    pooled, alone = (json.loads(output.splitlines()[-1]) for output in outputs)
    result = {
        "alone": {site: alone[site]["perplexity"] for site in sites},
        "federated": federated["metrics"]["perplexity"],
        "pooled": pooled["pooled"]["perplexity"],
        "bits_per_byte": {
            "alone": {site: alone[site]["bits_per_byte"] for site in sites},
            "federated": federated["metrics"]["bits_per_byte"],
            "pooled": pooled["pooled"]["bits_per_byte"],
        },
        "alone_at_home": {site: alone[site]["perplexity_at"][site] for site in sites},
        "pooled_at_home": pooled["pooled"]["perplexity_at"],
        "rounds": rounds,
        "release": ontology.release,
        "model_sha256": federated["model_sha256"],
        "run": str(directory / "run"),
    }
    (directory / RESULT_FILE).write_text(json.dumps(result) + "\n")
    return result


def print_table(result: dict[str, Any]) -> None:
    """Print the comparison as a table, and where the files are."""
    table = Table(title="Held-out definitions of all sites")
    table.add_column("trained on")
    table.add_column("perplexity of a token", justify="right")
    table.add_column("bits per byte", justify="right")
    table.add_column("perplexity at home", justify="right")
    bits = result["bits_per_byte"]
    for site, value in result["alone"].items():
        home = result["alone_at_home"][site]
        table.add_row(f"{site} alone", f"{value:.1f}", f"{bits['alone'][site]:.3f}", f"{home:.1f}")
    table.add_row("federated, masked sums", f"{result['federated']:.1f}", f"{bits['federated']:.3f}", "")
    table.add_row("pooled in one place", f"{result['pooled']:.1f}", f"{bits['pooled']:.3f}", "")
    Console(width=90).print(table)
    print(f"final model sha256 {result['model_sha256']}")
    print(f"run directory {result['run']}  (fedhpc report {result['run']})", flush=True)
