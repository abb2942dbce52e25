"""Codes for missing: in every spelling of a number, per column, and never a control by accident."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.data.cells import column_reader, label_reader
from fedhpc.data.ingest import ingest_csv
from fedhpc.data.recipe import Column, LabelColumn, Source, read_recipe
from fedhpc.data.rows import RowReader
from fedhpc.data.store import SiteStore
from fedhpc.errors import ConfigError, DataError

SPELLINGS = ["-9", "-9.0", "-9.", "-9.00", "-9.000", "-09", "-0009.0", "-9e0", "-9E+00", "-90e-1", "-.9e1", " -9 "]
PLUS = ["99", "+99", "99.0", "099", "9.9e1", "+99.", " 99.00 "]


def ingest(directory, recipe, text):
    (directory / "recipe.toml").write_text(recipe)
    (directory / "data.csv").write_text(text)
    made = read_recipe(directory / "recipe.toml")
    return ingest_csv(directory / "data.csv", made, directory / "out.h5", site="a", key=bytes(32))


def stored(directory):
    with SiteStore.open(directory / "out.h5") as store:
        return store.features(), store.labels()


def test_a_code_is_found_as_programs_write_it(tmp_path):
    """The file of a public report: one code, written seven ways by the programs that saved it."""
    recipe = """
[source]
id = "id"
missing_markers = ["", "-9"]
[[feature]]
column = "chol"
type = "number"
missing = "drop"
[[feature]]
column = "fbs"
type = "integer"
missing = "drop"
[label]
column = "num"
above = 0
missing = "drop"
"""
    rows = [
        "1,289,0,0",
        "2,-9,0,1",
        "3,-9.0,0,1",
        "4,-9.,0,0",
        "5,210,-9.0,1",
        "6,211,0,-9.0",
        "7,-09,1,1",
        "8,-9.000,1,1",
    ]
    done = ingest(tmp_path, recipe, "id,chol,fbs,num\n" + "\n".join(rows))
    assert (done.rows_kept, done.dropped) == (1, {"chol": 5, "fbs": 1, "num": 1})
    features, labels = stored(tmp_path)
    assert features.tolist() == [[289, 0]]
    assert labels.tolist() == [0]


@pytest.mark.parametrize("type_", ["number", "integer"])
@pytest.mark.parametrize(("marker", "spellings"), [("-9", SPELLINGS), ("-9.0", SPELLINGS), ("99", PLUS)])
def test_columns_of_numbers_compare_numbers(type_, marker, spellings):
    read = column_reader(Column(column="a", type=type_), Source("id", missing_markers=("", marker)))
    assert [read(text.strip()) for text in spellings] == [None] * len(spellings)
    assert read("-8") == (-8.0,)
    assert read("9") == (9.0,)


@pytest.mark.parametrize(
    "label",
    [
        LabelColumn("y"),
        LabelColumn("y", type="number"),
        LabelColumn("y", above=0),
        LabelColumn("y", above=1, range=(1, 2)),
        LabelColumn("y", classes={"1": 0, "2": 1}),
    ],
    ids=["integer", "number", "above", "range", "classes"],
)
def test_labels_that_are_numbers_compare_numbers(label):
    read = label_reader(label, Source("id", missing_markers=("-9",)))
    assert [read(text.strip()) for text in SPELLINGS] == [None] * len(SPELLINGS)
    assert read("2") == read("2.0") == read("2.")


def test_fractions_compare_as_the_store_holds_them():
    """A program with 32-bit numbers writes -9.9 as -9.8999996."""
    read = column_reader(Column(column="a", type="number"), Source("id", missing_markers=("-9.9", "99999999")))
    assert read("-9.8999996185") is None
    assert read("-9.90") is None
    assert read("-9.8") == (-9.8,)
    assert read("100000000") == (1e8,)  # whole numbers are exact: this is not 99999999
    assert read("99999999.0") is None


def test_a_number_of_two_readings_is_no_code():
    """9.000 is 9 or 9000 in a file with semicolons; with decimal = "." it is 9."""
    column, markers = Column(column="a", type="number"), ("9",)
    with pytest.raises(ValueError, match="a fraction, or thousands"):
        column_reader(column, Source("id", missing_markers=markers, delimiter=";"))("9.000")
    with pytest.raises(ValueError, match="a fraction, or thousands"):
        label_reader(LabelColumn("y", above=0), Source("id", delimiter=";"))("150.000")
    assert column_reader(column, Source("id", missing_markers=markers, delimiter=";", decimal="."))("9.000") is None


@pytest.mark.parametrize("marker", ["1e308", "-1.7976931348623157e+308", "1e-300"])
def test_codes_that_float32_does_not_hold_are_codes_too(marker):
    column, source = Column(column="a", type="number", missing="drop"), Source("id", missing_markers=(marker,))
    read = column_reader(column, source)
    assert read(marker) is None
    assert read("0") == (0.0,)
    values = np.empty(1, np.float32)
    with warnings.catch_warnings(action="error"):
        assert RowReader([column], [0], source).read([marker], values) == "a"
        assert RowReader([column], [0], source).read(["0"], values) is None
    assert values == 0


def test_decimal_commas_are_codes_too():
    source = Source("id", missing_markers=("-9", "-99.5"), decimal=",")
    read = column_reader(Column(column="a", type="number"), source)
    assert [read(text) for text in ("-9,0", "-9,", "-09", "-99,5", "-99,50")] == [None] * 5
    assert read("-9,5") == (-9.5,)


def test_text_compares_as_text():
    """A code of a classification may have a leading zero; -9 and -9.0 are two texts."""
    column = Column(column="a", type="category", levels=("07", "7.0", "-9.0"))
    read = column_reader(column, Source("id", missing_markers=("-9", "7")))
    assert read("-9") is None
    assert read("07") == (0.0, 0.0)
    assert read("7.0") == (1.0, 0.0)
    assert read("-9.0") == (0.0, 1.0)


def test_booleans_of_numbers_are_numbers():
    read = column_reader(Column(column="a", type="boolean", true="1", false="0"), Source("id", missing_markers=("9",)))
    assert [read(text) for text in ("1", "1.0", "0.", "9.0")] == [(1.0,), (1.0,), (0.0,), None]
    with pytest.raises(ValueError, match="not one of '1', '0'"):
        read("2")


def test_aliases_find_numbers_in_every_spelling():
    """9 that one site writes for 'none': 9.0 must not stay a 9."""
    column = Column(column="a", type="integer", aliases={"9": "0", "unknown": "-1"})
    read = column_reader(column, Source("id", missing_markers=("-1",)))
    assert read("9.0") == read("9") == read("09") == (0.0,)
    assert read("unknown") is None


MARKED = """
[source]
id = "id"
missing_markers = ["", "NA"]
[[feature]]
column = "chol"
type = "number"
missing = "drop"
missing_markers = ["0"]
[[feature]]
column = "fbs"
type = "integer"
missing = "drop"
missing_markers = ["9"]
[[feature]]
column = "sex"
type = "category"
levels = ["m", "f"]
missing = "fill"
fill = "m"
missing_markers = ["0"]
[label]
column = "pheno"
above = 1
range = [1, 2]
missing = "drop"
missing_markers = ["0", "-9"]
"""


def test_a_column_has_codes_of_its_own_beside_the_common_ones(tmp_path):
    rows = [
        "1,0.0,0,m,1",
        "2,9,0,f,2.0",
        "3,NA,0,m,1",
        "4,5,9.0,m,1",
        "5,5,0,0,1",
        "6,5,,m,1",
        "7,5,0,m,-9.0",
        "8,5,0,f,0",
    ]
    done = ingest(tmp_path, MARKED, "id,chol,fbs,sex,pheno\n" + "\n".join(rows))
    assert done.dropped == {"chol": 2, "fbs": 2, "pheno": 2}
    features, labels = stored(tmp_path)
    assert features.tolist() == [[9, 0, 1], [5, 0, 0]]  # 9 is a code in one column, 0 in others
    assert labels.tolist() == [1, 0]
    assert done.warnings == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('levels = ["m", "f"]', 'levels = ["m", "0"]', "'0' is a value and a missing marker"),
        ('levels = ["m", "f"]', 'levels = ["m", "NA"]', "'NA' is a value and a missing marker"),
        ("above = 1\nrange = [1, 2]", 'classes = { "0.0" = 0, "1" = 1 }', "'0.0' is a value and a missing marker"),
        ('fill = "m"', 'fill = "NA"', "fill is itself a code for missing"),
        ("range = [1, 2]", "range = [2, 3]", "above is not inside range"),
        ("range = [1, 2]", "range = [2, 1]", "smallest, largest"),
        ("range = [1, 2]", "range = [1]", "smallest, largest"),
        ("above = 1\nrange = [1, 2]", "classes = { a = 9007199254740993 }", "a class is larger than 9007199254740992"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(tmp_path, old, new, message):
    assert old in MARKED
    with pytest.raises(ConfigError, match=message) as caught:
        ingest(tmp_path, MARKED.replace(old, new), "id,chol,fbs,sex,pheno\n1,5,0,m,1\n2,5,0,f,1\n")
    assert caught.value.exit_code == 64


# --- labels above a limit ------------------------------------------------------------------------------------


def above(directory, label, values):
    recipe = f'[source]\nid = "id"\n[[feature]]\ncolumn = "x"\ntype = "number"\n[label]\ncolumn = "y"\n{label}\n'
    return ingest(directory, recipe, "id,x,y\n" + "".join(f"{i},1,{y}\n" for i, y in enumerate(values)))


PLINK = ["1", "2", "-9", "0"]


@pytest.mark.parametrize("values", [PLINK, ["1", "2", "0"], ["2", "1", "-9"], ["1.0", "2.0", "-9.0"]])
def test_a_code_that_nobody_listed_is_no_control(tmp_path, values):
    for label in ("above = 1", "above = 1\nrange = [1, 2]"):
        with pytest.raises(DataError, match=r"line \d: label column 'y': it is") as caught:
            above(tmp_path, label, values)
        assert "missing_markers" in caught.value.hint
        assert "range" in caught.value.hint
        assert "-9" not in caught.value.lines().replace(str(tmp_path), "")  # somebody's data
    assert not (tmp_path / "out.h5").exists()


def test_phenotypes_of_cases_and_controls(tmp_path):
    done = above(tmp_path, 'above = 1\nrange = [1, 2]\nmissing = "drop"\nmissing_markers = ["-9", "0"]', PLINK)
    assert (done.rows_kept, done.dropped, done.warnings) == (2, {"y": 2}, ())
    assert stored(tmp_path)[1].tolist() == [0, 1]


def test_grades_of_a_disease(tmp_path):
    done = above(tmp_path, "above = 0\nrange = [0, 4]", ["0", "1", "2", "3", "4"])
    assert done.warnings == ()
    assert stored(tmp_path)[1].tolist() == [0, 1, 1, 1, 1]
    for code in ("9", "99", "-9", "5", "-1"):
        with pytest.raises(DataError, match="outside the label's range, 0 to 4"):
            above(tmp_path, "above = 0\nrange = [0, 4]", ["0", "1", code])


def test_without_a_range_the_limit_is_the_least_and_it_is_told(tmp_path):
    done = above(tmp_path, "above = 0", ["0", "1", "2"])
    assert "'y' has no range" in done.warnings[0]
    with pytest.raises(DataError, match="smaller than above = 140"):
        above(tmp_path, "above = 140", ["150", "120"])
    above(tmp_path, "above = 140\nrange = [0, 300]", ["150", "120"])
    assert stored(tmp_path)[1].tolist() == [1, 0]


def test_a_range_bounds_labels_that_are_taken_as_they_are(tmp_path):
    for type_ in ("integer", "number"):
        label = f'type = "{type_}"\nrange = [0, 4]'
        above(tmp_path, label, ["0", "4"])
        with pytest.raises(DataError, match="outside the label's range"):
            above(tmp_path, label, ["0", "-9"])


def test_the_range_is_no_part_of_what_sites_must_share():
    wide, narrow = LabelColumn("y", above=0), LabelColumn("y", above=0, range=(0, 4))
    assert wide.label() == narrow.label()


# --- the two ways of reading a number ------------------------------------------------------------------------

DIGITS = st.text("0123456789", min_size=1, max_size=12)
WRITTEN = st.builds(
    lambda sign, whole, mark, part, exponent: sign + whole + mark + part + exponent,
    st.sampled_from(["", "-", "+"]),
    DIGITS,
    st.sampled_from(["", ".", ","]),
    st.sampled_from(["", "0", "000", "5", "125", "50000000000000000000000000000000000001"]),
    st.sampled_from(["", "e0", "e-5", "E-45", "e+9", "e05", "e-400"]),
)
TEXTS = WRITTEN | st.sampled_from(["", "NA", "-9", "-9.0", "0", "99", "x", "nan", "1e39", "16777217", "210.000"])


@given(
    st.lists(TEXTS, min_size=1, max_size=6),
    st.sampled_from(["number", "integer"]),
    st.sampled_from([None, ".", ","]),
    st.sampled_from([",", ";"]),
    st.sampled_from([{}, {"0": "7", "x": "99"}]),
)
def test_many_cells_at_once_are_read_as_one_by_one(texts, type_, decimal, delimiter, aliases):
    source = Source("id", missing_markers=("", "NA", "-9", "5"), decimal=decimal, delimiter=delimiter)
    columns = [
        Column(column=f"c{i}", type=type_, missing="drop", missing_markers=("99",) * (i % 2), aliases=aliases)
        for i in range(len(texts))
    ]

    def one_by_one():
        values = []
        for column, text in zip(columns, texts, strict=True):
            try:
                found = column_reader(column, source)(text)
            except ValueError as error:
                return f"column '{column.column}': {error}"
            if found is None:
                return column.column
            values += found
        return np.array(values, np.float32).tolist()

    def together():
        values = np.empty(len(texts), np.float32)
        try:
            dropped = RowReader(columns, range(len(texts)), source).read(texts, values)
        except ValueError as error:
            return str(error)
        return dropped if dropped is not None else values.tolist()

    assert together() == one_by_one()
