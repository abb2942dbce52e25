"""`fedhpc data`: make, check and cut site stores. Everything happens on this machine; nothing is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedhpc.cli.ordered import OrderedGroup
from fedhpc.errors import ConfigError, DataError

_FILE = click.Path(path_type=Path)
_MOST_SHOWN = 100  # features, one on a line


@click.group("data", cls=OrderedGroup)
def data() -> None:
    """Make, check and split a site's data store. All of it happens on this machine; nothing is sent.

    \b
      1. fedhpc data recipe patients.csv
      2. fedhpc data key row.key
      3. fedhpc data ingest patients.csv --recipe recipe.toml --site leiden --out leiden/data.h5 --key row.key
      4. fedhpc data check leiden/data.h5

    Texts need no key: fedhpc data tokenize letters/*.txt --tokenizer FOLDER --out leiden/text.h5
    """


@data.command("key", short_help="Make the key that hides row identifiers.")
@click.argument("file", type=_FILE)
def key(file: Path) -> None:
    """Make the row-id key FILE (mode 0600), which hides row identifiers in stores."""
    from fedhpc.data.rowkey import create_key

    create_key(file)
    click.echo(f"wrote {file} (mode 0600): keep it at the site, with the source data")


@data.command("recipe", short_help="Draft a recipe from a CSV file.")
@click.argument("csv_file", metavar="CSV", type=_FILE)
@click.option("--out", type=_FILE, default=Path("recipe.toml"), show_default=True, help="The recipe to write.")
@click.option("--id", "identifier", default="", metavar="COLUMN", help="The column that names a row.")
@click.option("--label", default="", metavar="COLUMN", help="The column to predict.")
def recipe(csv_file: Path, out: Path, identifier: str, label: str) -> None:
    """Draft the recipe of a CSV file: types, likely codes for missing, units to fill in.

    It prints no value of a person and writes none: of a column's words only those that five rows and more share.
    """
    from fedhpc.data.recipe_draft import draft_recipe
    from fedhpc.errors import StorageError

    if out.exists():
        raise ConfigError(f"{out} exists", "choose another name with --out; nothing was changed")
    draft = draft_recipe(csv_file, identifier=identifier, label=label)
    try:
        out.write_text(draft.text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror}", "check the folder and the quota") from None
    click.echo(f"wrote {out}, from {draft.rows} rows and {len(draft.told)} columns")
    for column, word in draft.told:
        click.echo(f"  {column}: {word}")
    if draft.open_:
        click.echo("left to you:")
        for line in draft.open_:
            click.echo(f"  {line}")


@data.command("ingest")
@click.argument("csv_file", metavar="CSV", type=_FILE)
@click.option("--recipe", "recipe_file", type=_FILE, required=True, help="TOML that says what the columns mean.")
@click.option("--site", required=True, help="This site's name in the federation.")
@click.option("--out", type=_FILE, required=True, help="The store to write (HDF5).")
@click.option("--key", "key_file", type=_FILE, required=True, help="Row-id key, from `fedhpc data key`.")
@click.option("--where", "pairs", multiple=True, metavar="COLUMN=VALUE", help="Take only rows with this value.")
def ingest(csv_file: Path, recipe_file: Path, site: str, out: Path, key_file: Path, pairs: tuple[str, ...]) -> None:
    """Turn a CSV file into a site store, by a recipe."""
    from fedhpc.data.ingest import ingest_csv
    from fedhpc.data.recipe import read_recipe
    from fedhpc.data.rowkey import read_key
    from fedhpc.data.written_over import refuse_written_over

    where = {}
    for pair in pairs:
        column, equals, value = pair.partition("=")
        if not equals or not column:
            raise ConfigError(f"--where {pair!r} has no '='", "write it as --where hospital=Leiden")
        where[column] = value
    refuse_written_over(out, recipe_file, key_file)
    recipe = read_recipe(recipe_file)
    done = ingest_csv(csv_file, recipe, out, site=site, key=read_key(key_file), where=where)
    click.echo(f"wrote {out}: {done.rows_kept} of {done.rows_read} rows")
    if done.rows_elsewhere:
        click.echo(f"  {done.rows_elsewhere} rows left out by where")
    for column, count in done.dropped.items():
        click.echo(f"  {count} rows dropped because '{column}' is missing")
    for column, count in done.filled.items():
        click.echo(f"  {count} cells of '{column}' filled in")
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)


@data.command("check", short_help="Validate stores; several must fit together.")
@click.argument("files", metavar="FILE...", type=_FILE, nargs=-1, required=True)
@click.option("--values", is_flag=True, help="Also each feature's smallest and largest value. These are data.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def check(files: tuple[Path, ...], values: bool, as_json: bool) -> None:
    """Validate stores; several must have the same features, or the same tokenizer."""
    import json

    if values:
        click.echo("warning: --values shows values of single persons: do not let this output leave the site", err=True)
    facts, differences = _check_all(files, values)
    if as_json:
        click.echo(json.dumps({"stores": facts, "differences": differences}, indent=2))
    else:
        for fact in facts:
            (_show_tokens if "tokens" in fact else _show)(fact)
    if differences:
        other, lines = next(iter(differences.items()))
        told = "; ".join(lines[:5]) + ("; …" if len(lines) > 5 else "")
        if any("tokens" in fact and fact["path"] == other for fact in facts):
            raise DataError(
                f"{other} and the first have different tokenizers: {told}", "tokenize all with the same one"
            )
        raise DataError(f"{files[0]} and {other} have different features: {told}", "agree on one recipe, ingest again")


def _check_all(files: tuple[Path, ...], values: bool) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Facts about each store, and by file how it differs from the first of its kind."""
    from fedhpc.data.check import compare_features, compare_tokenizers, describe, describe_tokens
    from fedhpc.data.store import SiteStore
    from fedhpc.data.tokens import TokenStore, holds_tokens

    facts: list[dict[str, Any]] = []
    differences: dict[str, list[str]] = {}
    first_rows: SiteStore | None = None
    first_tokens: TokenStore | None = None
    for file in files:
        if holds_tokens(file):
            with TokenStore.open(file) as tokens:
                facts.append(describe_tokens(tokens))
                first_tokens = first_tokens or tokens
                lines = compare_tokenizers(first_tokens, tokens)
        else:
            with SiteStore.open(file) as store:
                facts.append(describe(store, values=values))
                first_rows = first_rows or store
                lines = compare_features(first_rows.feature_set, store.feature_set)
        if lines:
            differences[str(file)] = lines
    return facts, differences


def _show_tokens(fact: dict[str, Any]) -> None:
    click.echo(f"{fact['path']}: {fact['documents']} documents, {fact['tokens']} tokens")
    click.echo(f"  vocabulary: {fact['vocabulary']}")
    click.echo(f"  tokenizer_sha256: {fact['tokenizer_sha256']}")
    click.echo(f"  bytes of each token: {'known' if fact['token_bytes'] else 'not known'}")


def _show(fact: dict[str, Any]) -> None:
    features = fact["features"]
    click.echo(f"{fact['path']}: site {fact['site']}, {fact['n']} rows, {len(features)} features")
    if fact["row_ids_from"]:
        click.echo(f"  no identifiers: each row is named by its {fact['row_ids_from']} in the source")
    for feature in features[:_MOST_SHOWN]:
        span = f"  {feature['min']:g} … {feature['max']:g}" if "min" in feature else ""
        unit = f" [{feature['unit']}]" if feature["unit"] else ""
        click.echo(f"  {feature['name']}{unit}: {feature['coding']}, missing {feature['missing']}{span}")
    if len(features) > _MOST_SHOWN:
        click.echo(f"  … and {len(features) - _MOST_SHOWN} more features, which --json shows")
    click.echo(f"  label {fact['label']['name']}: {fact['label']['coding']}{_balance(fact)}")
    for name in ("feature_sha256", "source_sha256", "licence", "citation", "creator", "created"):
        if fact[name]:
            click.echo(f"  {name}: {fact[name]}")


def _balance(fact: dict[str, Any]) -> str:
    """The share of each class, where the label has a few."""
    from fedhpc.data.check import FEW

    if not fact["classes"] or len(fact["classes"]) < 2:
        return ""
    shares = [
        f"{100 * rows / fact['n']:.0f} % are {name}" if rows >= FEW else f"fewer than {FEW} rows are {name}"
        for name, rows in fact["classes"].items()
    ]
    return f"; {', '.join(shares)}"


@data.command("split")
@click.argument("file", type=_FILE)
@click.option("--sites", type=int, required=True, help="How many stores to make.")
@click.option("--how", type=click.Choice(["iid", "dirichlet"]), default="iid", show_default=True)
@click.option("--alpha", type=float, default=0.5, show_default=True, help="Dirichlet: smaller is more skewed.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=_FILE, required=True, help="Directory for site-1.h5, site-2.h5, …")
def split(file: Path, sites: int, how: str, alpha: float, seed: int, out: Path) -> None:
    """Cut one store into several, for experiments."""
    from fedhpc.data.split import dirichlet_split, iid_split
    from fedhpc.data.store import SiteStore

    with SiteStore.open(file) as store:
        if how == "iid":
            paths = iid_split(store, sites, seed=seed, out=out)
        else:
            paths = dirichlet_split(store, sites, alpha=alpha, seed=seed, out=out)
    for name, path in paths.items():
        with SiteStore.open(path, scan=False) as part:
            click.echo(f"{name}: {part.n} rows in {path}")


@data.command("tokenize", short_help="Turn text files into a token store.")
@click.argument("texts", metavar="TEXT...", type=_FILE, nargs=-1, required=True)
@click.option("--tokenizer", "folder", type=_FILE, required=True, help="Folder with the tokenizer.json of all sites.")
@click.option("--out", type=_FILE, required=True, help="The token store to write (HDF5).")
@click.option(
    "--documents",
    type=click.Choice(["file", "line"]),
    default="file",
    show_default=True,
    help="What is one document: a whole file, or each line.",
)
@click.option("--end", default="<|endoftext|>", show_default=True, help="The token that ends a document.")
def tokenize(texts: tuple[Path, ...], folder: Path, out: Path, documents: str, end: str) -> None:
    """Turn UTF-8 text files into a token store, for the task `transformer`.

    The tokenizer is a local folder, the same at all sites; nothing is fetched.
    """
    from fedhpc.data.tokenize import tokenize as make
    from fedhpc.data.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder)
    done = make(texts, tokenizer, out, unit="line" if documents == "line" else "file", end=end)
    click.echo(f"wrote {out}: {done.documents} documents, {done.tokens} tokens")
    _show_tokenizer(tokenizer)


@data.command("new-tokenizer")
@click.argument("folder", type=_FILE)
@click.argument("texts", metavar="[TEXT...]", type=_FILE, nargs=-1)
@click.option("--vocabulary", type=int, default=257, show_default=True, help="Tokens; 257 are the bytes, and an end.")
def new_tokenizer(folder: Path, texts: tuple[Path, ...], vocabulary: int) -> None:
    """Make a byte-level tokenizer in FOLDER.

    With a larger vocabulary it learns common strings from TEXT, lines of public text: whoever gets it sees them.
    """
    from fedhpc.data.tokenize import read_documents
    from fedhpc.data.tokenizer import train_tokenizer

    if (vocabulary > 257) != bool(texts):
        raise ConfigError("TEXT and a --vocabulary above 257 go together", "the tokens above 257 are learnt from TEXT")
    lines = (document.text for path in texts for document in read_documents(path, "line"))
    tokenizer = train_tokenizer(folder, lines, vocabulary)
    click.echo(f"wrote {tokenizer.path}")
    _show_tokenizer(tokenizer)


def _show_tokenizer(tokenizer: Any) -> None:
    """What federation.toml says of it in [task] options."""
    click.echo(f"  vocabulary = {tokenizer.vocabulary}")
    click.echo(f'  tokenizer_sha256 = "{tokenizer.sha256}"')
