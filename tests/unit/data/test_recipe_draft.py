"""A drafted recipe: it reads the file that it was made from, and holds nobody's value."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.cli.data import data
from fedhpc.data.ingest import ingest_csv
from fedhpc.data.recipe import ROW_NUMBER, read_recipe
from fedhpc.data.recipe_draft import FEW, draft_recipe
from fedhpc.errors import ConfigError, DataError

HEAD = ["patient", "age", "sex", "glucose", "smoking", "visit", "note", "empty", "same", "ill"]


def write(path: Path, rows: list[list[object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def ward(rows: int = 80) -> list[list[object]]:
    draw = random.Random(1)
    return [HEAD] + [
        [
            f"p{n}", draw.randint(30, 80), draw.choice("MF"), -9 if n % 20 == 3 else round(draw.gauss(5, 1), 1),
            "pipe" if n < 2 else draw.choice(["never", "former"]), f"2024-03-{n % 28 + 1:02}", f"seen by Dr {n}", "", 1,
            draw.choice([0, 1]),
        ]
        for n in range(rows)
    ]  # fmt: skip


def test_types_codes_and_what_is_left_to_people(tmp_path: Path) -> None:
    path = write(tmp_path / "ward.csv", ward())
    draft = draft_recipe(path)
    assert dict(draft.told) == {
        "patient": "identifier: only a keyed hash is kept",
        "age": "integer",
        "sex": "boolean",
        "glucose": "number",
        "smoking": "category of 2 levels",
        "visit": "left out: it holds dates; write days since a public date into the file",
        "note": "left out: it holds names or free text (fewer than 2 or more than 40 values are shared by 5 rows)",
        "empty": "left out: it is empty",
        "same": "left out: all rows have the same value",
        "ill": "label, 0 or 1",
    }
    assert (draft.identifier, draft.label, draft.rows) == ("patient", "ill", 80)
    assert "'glucose': does -9 mean missing?" in draft.open_
    assert "pipe" not in draft.text  # two persons smoke one
    (tmp_path / "recipe.toml").write_text(draft.text)
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert [(c.column, c.type, c.missing_markers) for c in recipe.features] == [
        ("age", "integer", ()), ("sex", "boolean", ()), ("glucose", "number", ("-9",)), ("smoking", "category", ()),
    ]  # fmt: skip
    with pytest.raises(DataError, match="smoking"):  # the file has a level that the recipe does not name
        ingest_csv(path, recipe, tmp_path / "a.h5", site="a", key=bytes(32))
    filled = draft.text.replace('levels = ["former", "never"]', 'levels = ["former", "never", "pipe"]')
    (tmp_path / "recipe.toml").write_text(filled)
    done = ingest_csv(path, read_recipe(tmp_path / "recipe.toml"), tmp_path / "a.h5", site="a", key=bytes(32))
    assert (done.rows_kept, done.dropped) == (76, {"glucose": 4})


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ([1, 2, 3, 9] * 5, ["9"]),
        ([-1, 0, 1] * 5, []),
        ([40, 60, 80, 99] * 5, []),
        ([40, 60, 80, 999, -99] * 5, ["-99", "999"]),
        ([0.5, 3.1, -9] * 5, ["-9"]),
        ([-9, -20, 5] * 5, []),
    ],
)
def test_codes_that_stand_apart(tmp_path: Path, values: list[float], codes: list[str]) -> None:
    path = write(tmp_path / "a.csv", [["x", "y"], *([v, n % 2] for n, v in enumerate(values))])
    draft = draft_recipe(path, label="y")
    quoted = ", ".join(f'"{code}"' for code in codes)
    assert (f"missing_markers = [{quoted}]" in draft.text) == bool(codes)
    assert ("missing_markers" in draft.text) == bool(codes)
    assert draft.identifier == ROW_NUMBER


def test_a_file_with_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    rows = [["bmi", "diagnosis"], *([f"2{n % 7},5", ["yes", "no"][n % 2]] for n in range(30))]
    path = write(tmp_path / "a.csv", rows, ";")
    (tmp_path / "recipe.toml").write_text(draft_recipe(path).text)
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert (recipe.source.delimiter, recipe.source.decimal) == (";", ",")
    assert recipe.label.classes == {"no": 0, "yes": 1}
    assert ingest_csv(path, recipe, tmp_path / "a.h5", site="a", key=bytes(32)).rows_kept == 30


_CELL = st.one_of(
    st.integers(-99, 99).map(str),
    st.sampled_from(["yes", "no", "NA", "", "-9", "a b", 'x"y', "é"]),
    st.text("abc", max_size=4),
)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda width: st.lists(st.lists(_CELL, min_size=width, max_size=width), min_size=8, max_size=40)
    )
)
def test_nobodys_value_is_in_it(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("draft")
    unique = [[f"zq{n}zq", *row] for n, row in enumerate(rows)]
    header = ["name", *(f"col{k}" for k in range(len(rows[0])))]
    path = write(folder / "a.csv", [header, *unique])
    draft = draft_recipe(path, label=header[-1])
    shown = "\n".join([draft.text, *(word for pair in draft.told for word in pair), *draft.open_])
    assert "zq" not in shown
    for k in range(len(rows[0])):
        texts = [row[k].strip() for row in rows]
        rare = {text for text in texts if len(text) > 2 and texts.count(text) < FEW and set(text) <= set("abc")}
        others = {row[j].strip() for row in rows for j in range(len(row)) if j != k}
        for text in rare - others:
            assert f'"{text}"' not in shown
    (folder / "recipe.toml").write_text(draft.text)
    if any(word.startswith(("number", "integer", "boolean", "category")) for column, word in draft.told):
        read_recipe(folder / "recipe.toml")


def test_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [["a", "b"], *([n, n % 2] for n in range(9))])
    with pytest.raises(ConfigError, match="no column 'c'"):
        draft_recipe(path, label="c")
    with pytest.raises(DataError, match="has 3 rows"):
        draft_recipe(write(tmp_path / "few.csv", [["a", "b"], [1, 2], [3, 4], [5, 6]]))
    with pytest.raises(DataError, match="there 2 times"):
        draft_recipe(write(tmp_path / "twice.csv", [["a", "a"], *([n, n] for n in range(9))]))
    with pytest.raises(DataError, match="does not exist"):
        draft_recipe(tmp_path / "none.csv")
    (tmp_path / "recipe.toml").write_text("mine")
    done = CliRunner().invoke(data, ["recipe", str(path), "--out", str(tmp_path / "recipe.toml")])
    assert isinstance(done.exception, ConfigError)
    assert (tmp_path / "recipe.toml").read_text() == "mine"
