"""A federation of people's own CSV files: whole, or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedhpc.agreement.federation_file import Agreement, read_agreement
from fedhpc.cli.new import new
from fedhpc.data.store import SiteStore
from fedhpc.errors import ConfigError, DataError, FedhpcError, PolicyError

RECIPE = """\
[source]
id = "patient"
[[feature]]
column = "age"
type = "integer"
missing = "fill"
fill = 50
[[feature]]
column = "sex"
type = "boolean"
true = "M"
false = "F"
[label]
column = "ill"
"""


def files(folder: Path, recipe: str = RECIPE, **rows: str) -> list[str]:
    """Words of the command for sites a, b and c; `rows`: another file for a site."""
    (folder / "recipe.toml").write_text(recipe)
    words = [str(folder / "fed"), "--sites", "a,b,c", "--recipe", str(folder / "recipe.toml")]
    for site in "abc":
        body = "".join(f"{site}{n},{30 + n if n else ''},{'MF'[n % 2]},{n % 2}\n" for n in range(10))
        (folder / f"{site}.csv").write_text(rows.get(site, f"patient,age,sex,ill\n{body}"))
        words += ["--csv", f"{site}={folder / site}.csv"]
    return words


def agreed(folder: Path) -> Agreement:
    return read_agreement((folder / "federation.toml").read_bytes(), "federation.toml")


def test_a_whole_federation(tmp_path: Path) -> None:
    done = CliRunner().invoke(new, [*files(tmp_path), "--ranks", "2,1,1", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    fed = tmp_path / "fed"
    each = {"rows": 10, "read": 10, "dropped": {}, "filled": {"age": 1}}
    assert found["sites"] == {name: each | {"ranks": 2 if name == "a" else 1} for name in "abc"}
    assert (found["task"], found["features"], found["ranks"]) == ("logistic", 2, 4)
    names = ["data", "federation.toml", "keys", "recipe.toml", "row-id.key", "sites"]
    assert sorted(p.name for p in fed.iterdir()) == names
    agreement = agreed(fed)
    assert [site.name for site in agreement.roster] == ["a", "b", "c"]
    assert agreement.task["features_sha256"] == found["features_sha256"]
    with SiteStore.open(fed / "data" / "a.h5") as store:
        assert store.features()[0].tolist() == [50.0, 1.0]
        assert np.array_equal(store.labels(), [n % 2 for n in range(10)])
    for private in ("keys/a.key", "row-id.key", "data/a.h5"):
        assert (fed / private).stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_what_was_filled_in_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(new, files(tmp_path), catch_exceptions=False)
    assert "a: 10 of 10 rows\n    1 cells of 'age' filled in\n" in done.output
    assert "mpirun -n 3 " in done.output


def test_several_classes_make_another_task(tmp_path: Path) -> None:
    body = "".join(f"a{n},{30 + n},M,{n % 3}\n" for n in range(10))
    words = files(tmp_path, a=f"patient,age,sex,ill\n{body}")
    found = json.loads(CliRunner().invoke(new, [*words, "--json"], catch_exceptions=False).stdout)
    assert found["task"] == "mlp"
    assert (
        read_agreement((tmp_path / "fed" / "federation.toml").read_bytes(), "federation.toml").task["options"][
            "classes"
        ]
        == 3
    )


RENAMED = "patient,alter,gender,ill\nb1,30,M,1\n"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"b": RENAMED}, DataError, "b: no column 'age', but 'alter'; b: no column 'sex'"),
        ({"b": RENAMED.replace("alter", "Age")}, DataError, "b: no column 'age', but 'Age'"),
        ({"b": "patient,age,sex,ill\nb1,30,X,1\n"}, DataError, "site b: .*line 2: column 'sex'"),
        ({"recipe": RECIPE + 'type = "number"\n'}, ConfigError, "the label 'ill' is a number"),
        ({site: f"patient,age,sex,ill\n{site}1,3,M,1\n" for site in "abc"}, DataError, "the same label"),
    ],
)
def test_nothing_is_left_behind(tmp_path: Path, change: dict[str, str], kind: type[FedhpcError], words: str) -> None:
    done = CliRunner().invoke(new, files(tmp_path, **change))
    assert isinstance(done.exception, kind)
    with pytest.raises(kind, match=words):
        raise done.exception
    assert "b1" not in str(done.exception.lines())
    assert not (tmp_path / "fed").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--sites", "a,b"], "do not name the same sites: c"),
        (["--sites", "a,a,b"], "names no site, or one twice"),
        (["--sites", "a,b,c,d"], "do not name the same sites: d"),
        (["--ranks", "1,2"], "--ranks '1,2'"),
        (["--ranks", "0"], "--ranks '0'"),
        (["--csv", "a=x.csv"], "is no NAME=FILE, or comes twice"),
        (["--csv", "x.csv"], "is no NAME=FILE"),
        (["--seed", "3"], "belong to an example"),
    ],
)
def test_words_that_do_not_go_together(tmp_path: Path, change: list[str], words: str) -> None:
    done = CliRunner().invoke(new, [*files(tmp_path), *change])
    assert isinstance(done.exception, ConfigError)
    assert words in done.exception.what
    assert not (tmp_path / "fed").exists()


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    words = files(tmp_path)
    (tmp_path / "fed").mkdir()
    (tmp_path / "fed" / "notes.txt").write_text("mine")
    done = CliRunner().invoke(new, words)
    assert isinstance(done.exception, ConfigError)
    assert [p.name for p in (tmp_path / "fed").iterdir()] == ["notes.txt"]
    (tmp_path / "fed" / "notes.txt").unlink()
    assert CliRunner().invoke(new, words, catch_exceptions=False).exit_code == 0


def test_two_sites(tmp_path: Path) -> None:
    words = files(tmp_path)[:-2]
    done = CliRunner().invoke(new, [*words, "--sites", "a,b"])
    assert isinstance(done.exception, PolicyError)
    assert not (tmp_path / "fed").exists()
