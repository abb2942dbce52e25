"""`fedhpc new`: a working federation to start from."""

from __future__ import annotations

from pathlib import Path

import click

from fedhpc.errors import ConfigError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--example",
    type=click.Choice(["heart", "digits"]),
    default="heart",
    show_default=True,
    help="heart: four hospitals, logistic regression. digits: images dealt to four sites, a small CNN.",
)
@click.option("--sites", metavar="NAME,…", help="Sites of your own, in place of an example.")
@click.option("--csv", "csv_files", multiple=True, metavar="NAME=FILE", help="A site's CSV file; once for each site.")
@click.option("--recipe", "recipe", type=click.Path(path_type=Path), metavar="FILE", help="What the columns mean.")
@click.option(
    "--ranks", default="", metavar="N or N,N,…", help="Ranks of each site: 2 in an example, 1 with --sites by default."
)
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
@click.option("--json", "as_json", is_flag=True, help="With --sites: one JSON document on standard output.")
def new(
    directory: Path,
    example: str,
    sites: str | None,
    csv_files: tuple[str, ...],
    recipe: Path | None,
    ranks: str,
    rounds: int | None,
    seed: int,
    model: Path | None,
    as_json: bool,
) -> None:
    """Write a working federation into DIRECTORY: an example of four sites, or one of your own CSV files.

    \b
    fedhpc new DIRECTORY
    fedhpc new DIRECTORY --sites a,b,c --recipe recipe.toml --csv a=A.csv --csv b=B.csv --csv c=C.csv

    Change its files step by step: federation.toml is what all sites agree on, sites/NAME.toml what one site keeps to
    itself. `fedhpc data recipe A.csv` drafts a recipe.
    """
    if sites is not None or csv_files or recipe is not None:
        if model is not None or seed:
            raise ConfigError("--from-model and --seed belong to an example", "edit federation.toml afterwards")
        _own(directory, sites or "", csv_files, recipe, ranks, rounds, as_json)
        return
    if as_json:
        raise ConfigError("--json goes with --sites", "an example has nothing to tell")
    _example(directory, example, _ranks_of(ranks or "2", 1)[0], rounds, seed, model)


def _own(
    directory: Path,
    sites: str,
    csv_files: tuple[str, ...],
    recipe: Path | None,
    ranks: str,
    rounds: int | None,
    as_json: bool,
) -> None:
    """A federation of people's own files."""
    import json

    from fedhpc.enrolment.own_data import ROUNDS, write_own_federation

    names = [name.strip() for name in sites.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError("--sites names no site, or one twice", "such as --sites leiden,lund,graz")
    if recipe is None:
        raise ConfigError("--recipe is missing", "`fedhpc data recipe FILE.csv` drafts one")
    files: dict[str, Path] = {}
    for pair in csv_files:
        name, equals, path = pair.partition("=")
        if not equals or not path or name in files:
            raise ConfigError(f"--csv {pair!r} is no NAME=FILE, or comes twice", f"such as --csv {names[0]}=A.csv")
        files[name] = Path(path)
    if set(files) != set(names):
        wrong = sorted(set(files) ^ set(names))
        raise ConfigError(f"--sites and --csv do not name the same sites: {', '.join(wrong)}", "give one file a site")
    each = dict(zip(names, _ranks_of(ranks or "1", len(names)), strict=True))
    made = write_own_federation(
        directory, {name: files[name] for name in names}, recipe, ranks=each, rounds=rounds or ROUNDS
    )
    if as_json:
        click.echo(json.dumps(made.facts(directory), indent=2))
        return
    click.echo(f"wrote {directory}: federation.toml, sites/, keys/ and data/ of {len(names)} sites")
    for name, done in made.sites.items():
        click.echo(f"  {name}: {done.rows_kept} of {done.rows_read} rows")
        for column, count in done.dropped.items():
            click.echo(f"    {count} rows dropped because '{column}' is missing")
        for column, count in done.filled.items():
            click.echo(f"    {count} cells of '{column}' filled in")
        for warning in done.warnings:
            click.echo(f"warning: {name}: {warning}", err=True)
    click.echo(f"task {made.task}, {made.features} features")
    _tell_how_to_train(directory, sum(each.values()))


def _ranks_of(text: str, sites: int) -> list[int]:
    """The ranks of each site, from one number for all of them or one for each."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) <= 1024 for part in parts) or len(parts) not in (1, sites):
        raise ConfigError(f"--ranks {text!r} is not one number, or one for each site", "such as --ranks 2, or 2,1,3")
    return [int(parts[0])] * sites if len(parts) == 1 else [int(part) for part in parts]


def _tell_how_to_train(directory: Path, ranks: int) -> None:
    import os
    import shlex

    click.echo("train it with:")
    click.echo(
        f"  cd {shlex.quote(str(directory))} && mpirun -n {ranks} --map-by :OVERSUBSCRIBE "
        "python -m mpi4py -m fedhpc run federation.toml --sites sites/"
    )
    if os.geteuid() == 0:
        click.echo("as root, in a container, Open MPI first needs:")
        click.echo("  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")


def _example(directory: Path, example: str, ranks: int, rounds: int | None, seed: int, model: Path | None) -> None:
    """A federation of four sites, with data."""
    from fedhpc.config import parse_toml
    from fedhpc.demo.digits.federation import ROUNDS as DIGITS_ROUNDS
    from fedhpc.demo.digits.federation import TASK as DIGITS_TASK
    from fedhpc.demo.digits.federation import write_digits_federation
    from fedhpc.demo.heart.federation import ROUNDS as HEART_ROUNDS
    from fedhpc.demo.heart.federation import TASK as HEART_TASK
    from fedhpc.demo.heart.federation import write_heart_federation
    from fedhpc.errors import StorageError
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
    _tell_how_to_train(directory, 4 * ranks)
