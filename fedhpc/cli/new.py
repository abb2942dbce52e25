"""`fedhpc new`: a working federation to start from."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--example",
    type=click.Choice(["heart", "digits"]),
    default="heart",
    show_default=True,
    help="heart: four hospitals, logistic regression. digits: images dealt to four sites, a small CNN.",
)
@click.option("--ranks", type=click.IntRange(1), default=2, show_default=True, help="Ranks of each site.")
@click.option("--rounds", type=click.IntRange(1), help="Training rounds.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the held-out rows; with digits also of the sites' images, the first model and the data order.",
)
@click.option(
    "--from-model",
    "model",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Begin from the model in this safetensors file, of `fedhpc export` for one; a copy is put into DIRECTORY.",
)
def new(directory: Path, example: str, ranks: int, rounds: int | None, seed: int, model: Path | None) -> None:
    """Write a working federation of four sites into DIRECTORY, with data.

    Change its files step by step into your own: federation.toml is what all sites agree on, sites/NAME.toml what one
    site keeps to itself.
    """
    import os
    import shlex

    from fedhpc.config import parse_toml
    from fedhpc.demo.digits.federation import ROUNDS as DIGITS_ROUNDS
    from fedhpc.demo.digits.federation import TASK as DIGITS_TASK
    from fedhpc.demo.digits.federation import write_digits_federation
    from fedhpc.demo.heart.federation import ROUNDS as HEART_ROUNDS
    from fedhpc.demo.heart.federation import TASK as HEART_TASK
    from fedhpc.demo.heart.federation import write_heart_federation
    from fedhpc.errors import ConfigError, StorageError
    from fedhpc.train.start_file import fitting_file

    if (directory / "federation.toml").exists():
        raise ConfigError(f"{directory} holds a federation already", "choose another directory; nothing was changed")
    task = HEART_TASK.format(split_seed=seed) if example == "heart" else DIGITS_TASK.format(seed=seed)
    start = None if model is None else fitting_file(model, parse_toml(task.encode(), "the example's [task]"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {directory}: {error.strerror}", "choose another directory") from None
    if example == "heart":
        write_heart_federation(directory, rounds=rounds or HEART_ROUNDS, seed=seed, ranks=ranks, start=start)
    else:
        write_digits_federation(directory, rounds=rounds or DIGITS_ROUNDS, seed=seed, ranks=ranks, start=start)
    click.echo(f"wrote {directory}: federation.toml, sites/, keys/ and data/ of 4 sites")
    click.echo("train it with:")
    click.echo(
        f"  cd {shlex.quote(str(directory))} && mpirun -n {4 * ranks} --map-by :OVERSUBSCRIBE "
        "python -m mpi4py -m fedhpc run federation.toml --sites sites/"
    )
    if os.geteuid() == 0:
        click.echo("as root, in a container, Open MPI first needs:")
        click.echo("  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
