"""Numbers of a file that would be other numbers in a store: lost digits, underflow, points of thousands, commas."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedhpc.data.cells import fill_values
from fedhpc.data.decimals import LARGEST_LABEL, CellError, Decimals
from fedhpc.data.ingest import ingest_csv
from fedhpc.data.recipe import Column, Source, read_recipe
from fedhpc.data.store import SiteStore
from fedhpc.errors import ConfigError, DataError

HEAD = '[source]\nid = "id"\n'
LABEL = '[label]\ncolumn = "y"\n'


def ingest(directory, values, column='type = "number"', source="", delimiter=",", label=LABEL):
    recipe = f'{HEAD}delimiter = "{delimiter}"\n{source}\n[[feature]]\ncolumn = "x"\n{column}\n{label}'
    (directory / "recipe.toml").write_text(recipe)
    rows = [f'{i}{delimiter}"{value}"{delimiter}0' for i, value in enumerate(values)]
    (directory / "data.csv").write_text("\n".join([f"id{delimiter}x{delimiter}y", *rows, ""]))
    made = read_recipe(directory / "recipe.toml")
    ingest_csv(directory / "data.csv", made, directory / "out.h5", site="a", key=bytes(32))
    with SiteStore.open(directory / "out.h5") as store:
        return store.features()[:, 0].tolist()


def refused(directory, value, message, **options):
    with pytest.raises(DataError, match=rf"line 3: column 'x': .*{message}") as caught:
        ingest(directory, ["1", value], **options)
    assert caught.value.exit_code == 65
    assert value not in caught.value.lines().replace(str(directory), "")
    assert caught.value.hint
    return caught.value.hint


LOST = ["123456789", "123456789.0", "1.23456789e8", "+123456789", "-123456789", "0123456789", "20240131", "16777217"]
LOST += ["1700000000123456789", "1700000001", "33554433.25", "4294967295", "9007199254740993"]


@pytest.mark.parametrize("value", LOST)
def test_whole_numbers_keep_their_digits_or_are_refused(tmp_path, value):
    hint = refused(tmp_path, value, "does not hold all digits")
    assert "rounding = 'allow'" in hint


@pytest.mark.parametrize("value", LOST)
def test_the_way_out_exists(tmp_path, value):
    values = ingest(tmp_path, ["1", value], 'type = "number"\nrounding = "allow"')
    assert values == [1, float(np.float32(value))]


KEPT = [
    "16777216",
    "250000000",
    "6.022e23",
    "602200000000000000000000",
    "1e10",
    "0.1",
    "123456.789",
    "98765.4321",
    "3e38",
]
KEPT += ["-1e-37", "0", "-0.0", "0e-400", "0.000", "1234567.89", "0.123456789012345678", "20240130", "100000000"]


@pytest.mark.parametrize("value", KEPT)
def test_measurements_round(tmp_path, value):
    assert ingest(tmp_path, ["1", value]) == [1, float(np.float32(value))]


@pytest.mark.parametrize(
    "value", ["1e-50", "1e-320", "-1e-45", "1e-400", "1e-999999999999999999999", "1e-38", "0." + "0" * 50 + "1"]
)
def test_small_numbers_do_not_become_0(tmp_path, value):
    """A column of p-values would be a constant."""
    refused(tmp_path, value, "so small that float32 would hold 0")
    refused(tmp_path, value, "so small", column='type = "number"\nrounding = "allow"')
    refused(tmp_path, value, "not a whole number", column='type = "integer"')


@pytest.mark.parametrize("value", ["1e39", "1e400", "9" * 60])
def test_large_numbers_do_not_become_infinite(tmp_path, value):
    refused(tmp_path, value, "too large for float32")


@pytest.mark.parametrize("value", ["16777217", "123456789", "20240131", "1e9", "1e999999999999999999999"])
def test_integers_are_exact(tmp_path, value):
    assert "rounding" in refused(tmp_path, value, "larger than 16777216", column='type = "integer"')


def test_labels_keep_their_digits(tmp_path):
    quantity = LABEL + 'type = "number"\n'
    for value in ("123456789", "1e-50"):
        text = f"id,x,y\n1,1,0\n2,1,{value}\n"
        (tmp_path / "recipe.toml").write_text(f'{HEAD}[[feature]]\ncolumn = "x"\ntype = "number"\n{quantity}')
        (tmp_path / "data.csv").write_text(text)
        made = read_recipe(tmp_path / "recipe.toml")
        with pytest.raises(DataError, match=r"line 3: label column 'y': "):
            ingest_csv(tmp_path / "data.csv", made, tmp_path / "out.h5", site="a", key=bytes(32))
    assert Decimals().integer("9007199254740992", LARGEST_LABEL) == 2**53
    with pytest.raises(CellError, match="larger"):  # float() says that it is 2^53
        Decimals().integer("9007199254740993", LARGEST_LABEL)
    with pytest.raises(CellError, match="not a whole number"):  # float() says that it is 1
        Decimals().integer("0.99999999999999999999")


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_are_held_to_the_last_digit_that_is_not_0(value):
    held = float(np.float32(value))
    try:
        Decimals().number(str(value))
    except CellError:
        assert held != value
    else:
        digits = len(str(abs(value)).rstrip("0")) or 1
        assert held == value or float(f"{held:.{digits - 1}e}") == value


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_what_float32_holds_is_taken(value):
    assume(value == 0 or abs(value) >= np.finfo(np.float32).smallest_normal)
    assume(abs(value) < 2**24)
    assert np.float32(Decimals().number(f"{value:.20e}")) == np.float32(value)


# --- points and commas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["210.000", "98.000", "-1.000", "+5.000"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_thousands_in_a_column_of_integers(tmp_path, value, delimiter):
    hint = refused(tmp_path, value, "separate thousands", column='type = "integer"', delimiter=delimiter)
    assert "decimal = '.'" in hint


def test_integers_may_have_other_zeros(tmp_path):
    values = ["63.0", "63.", "63.00", "63.0000", "0.000", "6.3e1"]
    assert ingest(tmp_path, values, 'type = "integer"') == [63, 63, 63, 63, 0, 63]
    assert ingest(tmp_path, ["210.000"], 'type = "integer"', 'decimal = "."') == [210]


def test_a_point_in_a_file_with_semicolons_may_be_one_of_thousands(tmp_path):
    """Platelets 210.000 and 98.000 are 210 thousand where a comma is the decimal mark."""
    for value in ("210.000", "98.000", "6.700", "1.018", "-1.250"):
        hint = refused(tmp_path, value, "a fraction, or thousands", delimiter=";")
        assert "decimal = '.'" in hint
        assert ingest(tmp_path, [value], source='decimal = "."', delimiter=";") == [float(np.float32(value))]
        assert ingest(tmp_path, [value]) == [float(np.float32(value))]
    assert ingest(tmp_path, ["0.125", "1.5", "1.25", "1234.567"], delimiter=";")[:3] == [0.125, 1.5, 1.25]


@pytest.mark.parametrize(
    "value", ["1.250.000", "1,250,000", "1.250,5", "1,250.5", "1 250", "1'250", "1\u00a0250", "1\u202f250"]
)
@pytest.mark.parametrize("decimal", ["", 'decimal = "."', 'decimal = ","'])
def test_what_separates_thousands_is_refused(tmp_path, value, decimal):
    refused(tmp_path, value, "not a number", source=decimal, delimiter=";")


def test_decimal_commas(tmp_path):
    values = ["0,9", "-1,5e1", "7", ",5", "2,", "1,250"]
    comma = 'decimal = ","'
    wanted = [float(np.float32(v)) for v in (0.9, -15, 7, 0.5, 2, 1.25)]
    assert ingest(tmp_path, values, source=comma, delimiter=";") == wanted
    assert ingest(tmp_path, values, source=comma) == wanted  # in quotes
    hint = refused(tmp_path, "0,9", "there is a comma in it", delimiter=";")
    assert "decimal = ','" in hint
    hint = refused(tmp_path, "210.000", "there is a point in it", source=comma, delimiter=";")
    assert "decimal = '.'" in hint
    refused(tmp_path, "1,5e-50", "so small", source=comma, delimiter=";")
    refused(tmp_path, "123456789,5", "all digits", source=comma, delimiter=";")
    assert ingest(tmp_path, ["63,0"], 'type = "integer"', comma, ";") == [63]
    with pytest.raises(ConfigError, match="decimal"):
        ingest(tmp_path, ["1"], source='decimal = ";"')


def test_an_unquoted_decimal_comma_is_a_field_too_many(tmp_path):
    (tmp_path / "recipe.toml").write_text(f'{HEAD}[[feature]]\ncolumn = "x"\ntype = "number"\n{LABEL}')
    (tmp_path / "data.csv").write_text("id,x,y\n1,0,9,1\n")
    made = read_recipe(tmp_path / "recipe.toml")
    with pytest.raises(DataError, match="4 fields, but the header has 3") as caught:
        ingest_csv(tmp_path / "data.csv", made, tmp_path / "out.h5", site="a", key=bytes(32))
    assert "decimal comma" in caught.value.hint


def test_fill_is_written_as_toml_or_as_the_file_does():
    comma = Source("id", decimal=",", delimiter=";")
    for fill, value in ((1.5, 1.5), ("1,5", 1.5)):
        column = Column(column="x", type="number", missing="fill", fill=fill)
        assert fill_values(column, comma) == (value,)
    assert fill_values(Column(column="x", type="integer", missing="fill", fill=1000.0), comma) == (1000.0,)
    for fill, message in ((1e-50, "so small"), (123456789.0, "all digits"), ("1.5", "not a number")):
        with pytest.raises(ConfigError, match=f"fill cannot be used: .*{message}"):
            fill_values(Column(column="x", type="number", missing="fill", fill=fill), comma)


def test_rounding_belongs_to_numbers():
    with pytest.raises(ConfigError, match="rounding belongs to type = 'number'"):
        Column(column="x", type="integer", rounding="allow")
