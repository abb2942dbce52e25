"""`fedhpc new`: a working federation to start from."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--ranks", type=click.IntRange(1), default=2, show_default=True, help="Ranks of each site.")
@click.option("--rounds", type=click.IntRange(1), help="Training rounds.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def new(directory: Path, ranks: int, rounds: int | None, seed: int) -> None:
    """Write a working federation into DIRECTORY: four hospitals' heart-disease data as four sites.

    Change its files step by step into your own: federation.toml is what all sites agree on, sites/NAME.toml what one
    site keeps to itself.
    """
    from fedhpc.demo.heart.federation import ROUNDS, write_heart_federation

    federation = write_heart_federation(directory, rounds=rounds or ROUNDS, seed=seed, ranks=ranks)
    click.echo(f"wrote {federation}, sites/, keys/ and data/ of 4 sites")
    click.echo("train it with:")
    click.echo(
        f"  cd {directory} && mpirun -n {4 * ranks} --map-by :OVERSUBSCRIBE "
        "python -m mpi4py -m fedhpc run federation.toml --sites sites/"
    )
