"""The four hospitals of the UCI Heart Disease data as four site stores: data that were really collected apart."""

from __future__ import annotations

from pathlib import Path

from fedhpc.data.ingest import ingest_csv
from fedhpc.data.recipe import read_recipe
from fedhpc.errors import StorageError

CSV = Path(__file__).with_name("heart_disease_uci.csv")
RECIPE = Path(__file__).with_name("recipe.toml")

# Site name: what the CSV's column `dataset` says, after the correction in the recipe.
HOSPITALS = {
    "cleveland": "Cleveland",
    "hungary": "Hungary",
    "switzerland": "Switzerland",
    "va": "VA Long Beach",
}


def write_site_stores(directory: Path, key: bytes) -> dict[str, Path]:
    """Write `directory`/SITE.h5 for each hospital; `key` [32 bytes] hides the row identifiers. Site -> path.

    303, 261, 46 and 130 rows of 13 features. Raises StorageError.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {directory}: {error.strerror}", "choose another directory") from None
    recipe = read_recipe(RECIPE)
    paths = {site: directory / f"{site}.h5" for site in HOSPITALS}
    for site, path in paths.items():
        ingest_csv(CSV, recipe, path, site=site, key=key, where={"dataset": HOSPITALS[site]})
    return paths
