import contextlib
import csv
import hashlib
import hmac

import numpy as np
import pytest
from click.testing import CliRunner

from fedhpc.cli.data import data
from fedhpc.data import csv_file, kept_rows
from fedhpc.data.decimals import Decimals
from fedhpc.data.ingest import ingest_csv
from fedhpc.data.recipe import read_recipe
from fedhpc.data.rowkey import create_key
from fedhpc.data.store import SiteStore
from fedhpc.demo.heart.hospitals import CSV, HOSPITALS, RECIPE, write_site_stores
from fedhpc.errors import ConfigError, DataError

KEY = bytes(range(32))

RECIPE_TEXT = """
[source]
id = "id"
licence = "CC0-1.0"

[[feature]]
column = "age"
type = "integer"
unit = "years"
missing = "drop"

[[feature]]
column = "sex"
name = "male"
type = "boolean"
true = "Male"
false = "Female"
aliases = { m = "Male" }

[[feature]]
column = "smoking"
type = "category"
levels = ["never", "former", "current"]
missing = "fill"
fill = "never"

[[feature]]
column = "crp"
type = "number"
unit = "mg/l"
missing = "fill"
fill = 1.5

[label]
column = "stage"
name = "ill"
above = 0
"""

CSV_TEXT = """id,age,sex,smoking,crp,stage,hospital
p1,63,Male,former,2.5,0,A
p2,NA,Female,current,1,1,A
p3,41,m,,?,2,B
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE_TEXT)
    (tmp_path / "data.csv").write_text(CSV_TEXT)
    return tmp_path


def run(directory, recipe=RECIPE_TEXT, text=CSV_TEXT, **options):
    (directory / "recipe.toml").write_text(recipe)
    (directory / "data.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    made = read_recipe(directory / "recipe.toml")
    return ingest_csv(directory / "data.csv", made, directory / "out.h5", site="a", key=KEY, **options)


def refused(directory, message, hint="", **options):
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        run(directory, **options)
    assert hint in caught.value.hint
    assert not (directory / "out.h5").exists()
    return caught.value


def test_what_is_read_is_not_written_over(files):
    recipe = read_recipe(files / "recipe.toml")
    (files / "link.h5").symlink_to(files / "data.csv")
    for out in ("data.csv", "link.h5"):
        with pytest.raises(ConfigError, match="would be written over"):
            ingest_csv(files / "data.csv", recipe, files / out, site="a", key=KEY)
    create_key(files / "row.key")
    words = ["ingest", "data.csv", "--recipe", "recipe.toml", "--site", "a", "--key", "row.key", "--out"]
    with contextlib.chdir(files):
        for out in ("data.csv", "recipe.toml", "row.key", "link.h5", "."):
            done = CliRunner().invoke(data, [*words, out])
            assert isinstance(done.exception, ConfigError), out
    assert (files / "data.csv").read_text() == CSV_TEXT
    assert (files / "recipe.toml").read_text() == RECIPE_TEXT
    assert (files / "row.key").stat().st_size


def test_columns_become_features(tmp_path):
    done = run(tmp_path)
    assert (done.rows_read, done.rows_kept, done.dropped, done.rows_elsewhere) == (3, 2, {"age": 1}, 0)
    with SiteStore.open(tmp_path / "out.h5") as store:
        assert store.feature_names == ("age", "male", "smoking=former", "smoking=current", "crp")
        np.testing.assert_array_equal(store.features(), np.float32([[63, 1, 1, 0, 2.5], [41, 1, 0, 0, 1.5]]))
        np.testing.assert_array_equal(store.labels(), [0, 1])
        assert store.labels().dtype == np.int64
        assert store.facts["licence"] == "CC0-1.0"
        assert store.facts["source_sha256"] == hashlib.sha256(CSV_TEXT.encode()).hexdigest()
        ids = [hmac.new(KEY, name, "sha256").digest() for name in (b"p1", b"p3")]
        assert store.row_ids().tobytes() == b"".join(ids)
    assert b"p1" not in (tmp_path / "out.h5").read_bytes()


@pytest.mark.parametrize(
    ("coding", "row"), [("one-hot", [1, 0, 0]), ("ordinal", [0]), ("dummy", [0, 0])], ids=lambda v: str(v)
)
def test_categories_are_coded_as_asked(tmp_path, coding, row):
    recipe = RECIPE_TEXT.replace('"current"]', f'"current"]\ncoding = "{coding}"')
    run(tmp_path, recipe)
    with SiteStore.open(tmp_path / "out.h5") as store:
        assert store.features()[1, 2:-1].tolist() == row


def test_codings_change_the_feature_hash(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE_TEXT)
    base = read_recipe(tmp_path / "r.toml").feature_set().sha256
    for old, new in (
        ('unit = "years"', 'unit = "months"'),
        ('true = "Male"\nfalse = "Female"', 'true = "Female"\nfalse = "Male"'),
        ('["never", "former", "current"]', '["never", "current", "former"]'),
        ("above = 0", "above = 1"),
        ('name = "ill"', 'name = "died"'),
    ):
        assert old in RECIPE_TEXT
        (tmp_path / "r.toml").write_text(RECIPE_TEXT.replace(old, new))
        assert read_recipe(tmp_path / "r.toml").feature_set().sha256 != base, new
    # How one site spells its columns and values is its own affair.
    (tmp_path / "r.toml").write_text(RECIPE_TEXT.replace('column = "crp"', 'column = "CRP1"\nname = "crp"'))
    assert read_recipe(tmp_path / "r.toml").feature_set().sha256 == base


def test_where_picks_rows_after_moves(tmp_path):
    move = '[[move]]\nid = "p1"\ncolumn = "hospital"\nvalue = "B"\n'
    done = run(tmp_path, RECIPE_TEXT + move, where={"hospital": "B"})
    assert (done.rows_kept, done.rows_elsewhere) == (2, 1)
    done = run(tmp_path, RECIPE_TEXT.replace('id = "id"', 'id = "id"\nwhere = { hospital = "A" }'))
    assert (done.rows_kept, done.rows_elsewhere, done.dropped) == (1, 1, {"age": 1})


@pytest.mark.parametrize(
    ("label", "values", "dtype"),
    [
        ('classes = { "0" = 0, "2" = 7 }', [0, 7], np.int64),
        ("", [0, 2], np.int64),
        ('type = "number"', [0, 2], np.float32),
    ],
)
def test_labels_are_classes_counts_or_quantities(tmp_path, label, values, dtype):
    run(tmp_path, RECIPE_TEXT.replace("above = 0", label))
    with SiteStore.open(tmp_path / "out.h5") as store:
        assert store.labels().tolist() == values
        assert store.labels().dtype == dtype


CELLS = {
    "line 2: column 'age': it is not a whole number": ("63", "63.5"),
    "line 2: column 'age': it is larger than 16777216": ("63", "16777217"),
    "line 2: column 'age': it is not a number": ("63", "6_3"),
    "line 2: column 'crp': it is not a number": ("2.5", "inf"),
    "line 2: column 'crp': it is not a number ": ("2.5", "2.5 mg"),
    "line 2: column 'crp': it is too large": ("2.5", "1e39"),
    "line 4: column 'sex': it is not one of 'Male', 'Female'": (",m,", ",x,"),
    "line 4: column 'sex' is missing": (",m,", ",,"),
    "line 3: column 'id' is empty": ("p2", ""),
    "line 4: column 'id' repeats the identifier of line 2": ("p3", "p1"),
    "line 2: label column 'stage': it is not a number": ("2.5,0", "2.5,ill"),
    "line 2: label column 'stage' is missing": ("2.5,0", "2.5,"),
    "line 3: 6 fields, but the header has 7": ("1,1,A", "1,1"),
    "line 2: it is not CSV": ("Male", '"Ma"le'),
    "line 4: it is not CSV": ("p3", '"p3'),
    "column 'age' is there 2 times": ("crp,stage", "age,stage"),
}


@pytest.mark.parametrize("message", CELLS)
def test_cells_that_do_not_fit_are_named_by_line_and_column(tmp_path, message):
    old, new = CELLS[message]
    assert old in CSV_TEXT
    error = refused(tmp_path, message.strip(), text=CSV_TEXT.replace(old, new, 1))
    assert error.exit_code == 65
    for value in ("63.5", "6_3", "2.5 mg", "p1", "1e39"):
        assert value not in error.lines()  # somebody's data stays out of logs


def test_a_wrong_category_names_the_levels_and_the_nearest(tmp_path):
    error = refused(tmp_path, "line 2: column 'smoking'", text=CSV_TEXT.replace("former", "formr"))
    assert "'never', 'former', 'current'; nearest: 'former'" in error.what


def test_columns_the_file_lacks_are_named_with_the_nearest(tmp_path):
    refused(tmp_path, "no column 'smoking'", "did you mean 'smokin'?", text=CSV_TEXT.replace("smoking", "smokin"))
    refused(tmp_path, "no column 'town'", "it has: id, age", where={"town": "x"})


def test_missing_is_refused_unless_the_recipe_says_otherwise(tmp_path):
    strict = RECIPE_TEXT.replace('missing = "drop"', 'missing = "refuse"')
    refused(tmp_path, "line 3: column 'age' is missing", "missing = 'drop' or 'fill'", recipe=strict)
    refused(tmp_path, "no row is left of 3", "3 left out", where={"hospital": "Z"})


def test_files_that_are_not_text_tables_are_refused(tmp_path, monkeypatch):
    refused(tmp_path, "line 2: it is not UTF-8", "iconv", text=CSV_TEXT.replace("p1", "\xe9").encode("latin1"))
    refused(tmp_path, "has no header", text="")
    refused(tmp_path, "line 2: it is not CSV|a field is longer", text=CSV_TEXT.replace("former", "x" * 70_000))
    monkeypatch.setattr(csv_file, "LONGEST_RECORD_BYTES", 100)
    refused(tmp_path, "line 2: a row is longer", text=CSV_TEXT.replace("former", "x" * 101))
    many_lines = CSV_TEXT.replace("former", '"' + "\n" * 120 + '"')
    refused(tmp_path, "a row is longer", text=many_lines)


def test_a_byte_order_mark_and_windows_line_ends_are_taken(tmp_path):
    done = run(tmp_path, text=b"\xef\xbb\xbf" + CSV_TEXT.replace("\n", "\r\n").encode() + b"\r\n")
    assert done.rows_kept == 2


def test_moves_that_find_no_row_are_refused(tmp_path):
    move = '[[move]]\nid = "p9"\ncolumn = "hospital"\nvalue = "B"\n'
    refused(tmp_path, r"move\[0\] \(column 'hospital'\) finds no row", recipe=RECIPE_TEXT + move)


RECIPES = {
    "unknown key 'colum'": ('column = "age"', 'colum = "age"'),
    "unknown key 'features'": ("[[feature]]", "[[features]]"),
    "'label' is missing": (RECIPE_TEXT[RECIPE_TEXT.index("[label]") :], ""),
    "at least two different levels": ('["never", "former", "current"]', '["never", "never"]'),
    "fill cannot be used": ('fill = "never"', 'fill = "nevr"'),
    "go together": ('fill = "never"', ""),
    "belong to type = 'category'": ('unit = "years"', 'levels = ["a", "b"]'),
    "belong to type = 'boolean'": ('unit = "years"', 'true = "yes"'),
    "is the label and a feature": ('column = "stage"', 'column = "age"'),
    "is the identifier and a feature": ('id = "id"', 'id = "crp"'),
    "true and false are the same": ('false = "Female"', 'false = "MALE"'),
    "not one of": ('type = "integer"', 'type = "int"'),
    "delimiter": ('id = "id"', 'id = "id"\ndelimiter = ";;"'),
}


@pytest.mark.parametrize("message", RECIPES)
def test_recipes_that_make_no_sense_are_refused(tmp_path, message):
    old, new = RECIPES[message]
    assert old in RECIPE_TEXT
    error = refused(tmp_path, message, recipe=RECIPE_TEXT.replace(old, new))
    assert error.exit_code == 64


def test_more_rows_than_a_block_keep_their_order(tmp_path):
    n = 2 * kept_rows._BLOCK_ROWS + 3
    lines = "".join(f"p{i},{i},Male,never,1,0,A\n" for i in range(n))
    assert run(tmp_path, text=CSV_TEXT.splitlines()[0] + "\n" + lines).rows_kept == n
    with SiteStore.open(tmp_path / "out.h5") as store:
        np.testing.assert_array_equal(store.features()[:, 0], np.arange(n))


@pytest.mark.parametrize("text", ["", "-", ".", "1e", "0x10", "1,5", "nan", "1 2", "١", "9" * 65])
def test_what_is_no_number(text):
    with pytest.raises(ValueError, match="not a number"):
        Decimals().number(text)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("-.5", -0.5), ("+2.", 2), ("1E-3", 0.001)])
def test_what_is_a_number(text, value):
    assert Decimals().number(text) == value


# --- the heart demonstration ---------------------------------------------------------------------------------

HEART_FEATURES = "13d56f69306a5a4af2f296053885868c8e40109abbf3e153a8791fba692914ff"
TEN = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalch", "exang", "oldpeak"]


def test_the_four_hospitals(tmp_path):
    paths = write_site_stores(tmp_path / "stores", KEY)
    assert list(paths) == list(HOSPITALS) == ["cleveland", "hungary", "switzerland", "va"]
    counts, ill, ids = [], [], set()
    for site, path in paths.items():
        with SiteStore.open(path) as store:
            assert store.site == site
            assert store.feature_sha256 == HEART_FEATURES
            assert len(store.feature_names) == 13
            counts.append(store.n)
            ill.append(int(store.labels().sum()))
            ids |= {row.tobytes() for row in store.row_ids()}
    assert counts == [303, 261, 46, 130]
    assert ill == [139, 98, 45, 101]
    assert len(ids) == 740


def test_the_stores_hold_the_csv(tmp_path):
    """Every number against a second reading that knows nothing of recipes."""
    paths = write_site_stores(tmp_path, KEY)
    with CSV.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[name] for name in TEN)]
    assert [row["dataset"] for row in rows if row["id"] == "304"] == ["Cleveland"]
    for site, hospital in HOSPITALS.items():
        mine = [r for r in rows if ("Hungary" if r["id"] == "304" else r["dataset"]) == hospital]
        wanted = [
            [
                *(float(r["age"]), r["sex"] == "Male"),
                *(r["cp"] == level for level in ("atypical angina", "non-anginal", "asymptomatic")),
                *(float(r["trestbps"]), float(r["chol"]), r["fbs"] == "TRUE"),
                *(r["restecg"] == level for level in ("st-t abnormality", "lv hypertrophy")),
                *(float(r["thalch"]), r["exang"] == "TRUE", float(r["oldpeak"])),
            ]
            for r in mine
        ]
        with SiteStore.open(paths[site]) as store:
            np.testing.assert_array_equal(store.features(), np.array(wanted, np.float32))
            np.testing.assert_array_equal(store.labels(), [int(r["num"]) > 0 for r in mine])


def test_without_the_correction_cleveland_has_one_too_many(tmp_path):
    recipe = RECIPE.read_text()
    start, end = recipe.index("[[move]]"), recipe.index("[[feature]]")
    (tmp_path / "recipe.toml").write_text(recipe[:start] + recipe[end:])
    made = read_recipe(tmp_path / "recipe.toml")
    done = ingest_csv(CSV, made, tmp_path / "c.h5", site="c", key=KEY, where={"dataset": "Cleveland"})
    assert done.rows_kept == 304
