"""CSV files as programs write them: encodings, Excel's first line, headers, padding, no header, no identifier."""

import gzip
import hashlib
import hmac
import io
import json
import subprocess
import zipfile

import pytest
from click.testing import CliRunner

from fedhpc.cli.data import data
from fedhpc.data.check import describe
from fedhpc.data.encodings import foreign_start
from fedhpc.data.ingest import ingest_csv
from fedhpc.data.recipe import read_recipe
from fedhpc.data.split import iid_split
from fedhpc.data.store import SiteStore
from fedhpc.errors import ConfigError, DataError

KEY = bytes(range(32))
RECIPE = """
[source]
id = "id"
SOURCE
[[feature]]
column = "age"
type = "integer"
[[feature]]
column = "town"
type = "category"
levels = ["Köln", "Łódź", "Bonn", "x’y"]
[label]
column = "ill"
"""
TEXT = "id,age,town,ill\nJosé,63,Bonn,0\nb,41,Köln,1\n"


def ingest(directory, text, source="", recipe=RECIPE, **options):
    (directory / "recipe.toml").write_text(recipe.replace("SOURCE", source))
    (directory / "data.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    made = read_recipe(directory / "recipe.toml")
    return ingest_csv(directory / "data.csv", made, directory / "out.h5", site="a", key=KEY, **options)


def rows(directory):
    with SiteStore.open(directory / "out.h5") as store:
        return store.features()[:, 0].tolist()


def refused(directory, message, text, source="", **options):
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        ingest(directory, text, source, **options)
    assert not (directory / "out.h5").exists()
    assert "José" not in caught.value.lines()
    return caught.value.hint


# --- encodings -----------------------------------------------------------------------------------------------

ENCODINGS = {
    "utf-16": TEXT,
    "utf-16-le": TEXT,
    "utf-16-be": TEXT,
    "utf-32": TEXT,
    "utf-32-le": TEXT,
    "utf-32-be": TEXT,
    "latin1": TEXT,
    "cp1252": TEXT.replace("Bonn", "x’y"),
}
NAMED = {"utf-16-le": "utf-16le", "utf-16-be": "utf-16be", "utf-32-le": "utf-32le", "utf-32-be": "utf-32be"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_command_in_the_hint_converts_the_file(tmp_path, encoding):
    directory = tmp_path / "a folder's"
    directory.mkdir()
    name = NAMED.get(encoding, encoding)
    hint = refused(directory, f"(?i){name}\\b", ENCODINGS[encoding].encode(encoding))
    assert hint.startswith(f"iconv -f {name} ")
    subprocess.run(["bash", "-c", hint], check=True, timeout=60)
    assert (directory / "data.utf8.csv").read_text(encoding="utf-8-sig") == ENCODINGS[encoding]
    ingest(directory, (directory / "data.utf8.csv").read_bytes())
    assert rows(directory) == [63, 41]
    with SiteStore.open(directory / "out.h5") as store:
        assert store.row_ids()[0].tobytes() == hmac.digest(KEY, "José".encode(), hashlib.sha256)


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf16_with_its_mark(tmp_path, mark):
    encoding = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
    hint = refused(tmp_path, "it is UTF-16, not UTF-8", mark + TEXT.encode(encoding))
    assert "iconv -f utf-16 " in hint


@pytest.mark.parametrize("text", ["编号,年龄\n张三,63\n", "номер,возраст\nИван,63\n", "id,age\n1,2\n"])
def test_utf16_in_other_scripts(text, tmp_path):
    for encoding, name in (("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32-be", "UTF-32BE")):
        told = foreign_start(text.encode(encoding), tmp_path / "d.csv")
        assert told is not None
        assert name in told[0]
    assert foreign_start(text.encode(), tmp_path / "d.csv") is None


def test_one_byte_of_value_0_is_no_utf16(tmp_path):
    for at in (17, 18):
        text = TEXT.encode()
        refused(tmp_path, "line 2: there are bytes of value 0", text[:at] + b"\0" + text[at:])


@pytest.mark.parametrize("last", [b"\xe9,1,Bonn,0\n", "José\xe9".encode() + b"\xe9,1,Bonn,0\n"])
def test_a_file_of_two_encodings(tmp_path, last):
    """UTF-8 and latin1 joined: to convert it all would spoil what is right."""
    hint = refused(tmp_path, "line 4: it is not UTF-8, though other text of the file is", TEXT.encode() + last)
    assert "iconv" not in hint
    hint = refused(
        tmp_path, "line 2: it is not UTF-8, though other", TEXT.splitlines()[0].encode() + b"\n\xc3\xa9" + b"\xe9,1\n"
    )
    assert "iconv" not in hint


def test_a_file_that_ends_within_a_character(tmp_path):
    hint = refused(tmp_path, "line 3: the file ends within a character", TEXT.encode()[: TEXT.encode().rindex(b"\xb6")])
    assert "cut short" in hint


def test_an_encoding_that_nobody_can_guess(tmp_path):
    hint = refused(tmp_path, "not UTF-8, latin1 or cp1252", TEXT.encode()[:17] + b"\x8d\x81,63,Bonn,0\n")
    assert "iconv -l" in hint


def packed():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (packed(), "Excel workbook"),
        (gzip.compress(TEXT.encode(), mtime=0), "gzip"),
        (b"PAR1xxxx", "Parquet"),
        (b"\x89HDF\r\n", "HDF5"),
    ],
    ids=["workbook", "gzip", "parquet", "hdf5"],
)
def test_files_that_are_no_text(tmp_path, start, message):
    refused(tmp_path, message, start)


# --- Excel's first line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", ["sep=;\n", "sep=;\r\n", "SEP=;\n", '"sep=;"\n', "\ufeffsep=;\n", "sep=;;;;\n", "Sep=; \n"]
)
def test_the_line_that_names_the_delimiter(tmp_path, first):
    text = first + TEXT.replace(",", ";")
    ingest(tmp_path, text, 'delimiter = ";"')
    assert rows(tmp_path) == [63, 41]


def test_the_line_that_names_another_delimiter(tmp_path):
    hint = refused(tmp_path, "line 1: the file says that ';' separates", "sep=;\n" + TEXT.replace(",", ";"))
    assert hint == "delimiter = ';' in [source]"
    hint = refused(tmp_path, "line 1: the file says", "sep=\t\n" + TEXT.replace(",", "\t"))
    assert hint == 'delimiter = "\\t" in [source]'
    ingest(tmp_path, "sep=\t\n" + TEXT.replace(",", "\t"), 'delimiter = "\\t"')
    assert rows(tmp_path) == [63, 41]


def test_lines_are_counted_as_an_editor_does(tmp_path):
    refused(tmp_path, "line 4: column 'age': it is not a number", "sep=,\n" + TEXT.replace("41", "old"))


# --- headers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "tail"),
    [
        ("id,age,town,ill,,", ",,"),
        ("id,age,town,ill,x,x", ",1,2"),
        ("id,age,town,ill,,x,", ",1,2,3"),
        (" id , age,town,ill,\ufeff", ",1"),
    ],
)
def test_headers_that_nobody_uses_may_be_empty_or_twice(tmp_path, header, tail):
    lines = TEXT.splitlines()
    text = "\n".join([header, *(line + tail for line in lines[1:])])
    ingest(tmp_path, text)
    assert rows(tmp_path) == [63, 41]


@pytest.mark.parametrize("used", ["id", "age", "ill", "sex"])
def test_headers_that_are_used_stand_once(tmp_path, used):
    text = f"{used},id,age,town,ill,sex\n1,1,1,Bonn,1,1\n"
    refused(tmp_path, f"column '{used}' is there 2 times", text, where={"sex": "1"})


def test_a_wrong_delimiter_is_guessed(tmp_path):
    hint = refused(tmp_path, "has no column 'id'", TEXT.replace(",", ";"))
    assert "does ';' separate" in hint
    assert "does a blank or tab separate" in refused(tmp_path, "has no column 'id'", TEXT.replace(",", "\t"))


def test_a_file_without_header_shows_nobody(tmp_path):
    """Its first line is a person."""
    text = "José,63,Bonn,0\nb,41,Köln,1\n"
    hint = refused(tmp_path, "has no column 'id'", text)
    assert "header = " in hint
    assert "Bonn" not in hint
    refused(tmp_path, "has no column 'id'", text.replace(",", ";"))
    source = 'header = ["id", "age", "town", "ill"]'
    ingest(tmp_path, text, source)
    assert rows(tmp_path) == [63, 41]
    (tmp_path / "out.h5").unlink()
    hint = refused(tmp_path, "line 1: it is the header", TEXT, source)
    assert "remove header" in hint
    refused(tmp_path, "line 1: 4 fields, but the header has 5", text, 'header = ["id", "age", "town", "ill", "x"]')


@pytest.mark.parametrize("row", ["José,ja,Bonn", "José,1961-05-03,nein", "José,4-8,F32.1"])
def test_a_first_line_without_any_column_of_the_recipe_may_be_a_person(tmp_path, row):
    """Words and dates say nothing of whether it is a header: it is shown where a column of the recipe is in it."""
    hint = refused(tmp_path, "has no column 'id'", f"{row}\n{row}\n")
    assert "header = " in hint
    assert not any(word in hint for word in row.split(","))
    assert "it has: pid, age, town, ill" in refused(tmp_path, "has no column 'id'", TEXT.replace("id", "pid", 1))


@pytest.mark.parametrize("empty", [",,,", " , ,\t,", "   ", '"","","",""', ",,,,,,", ""])
def test_empty_rows_of_a_spreadsheet_are_nobody(tmp_path, empty):
    head, first, second, _ = TEXT.split("\n")
    done = ingest(tmp_path, "\n".join([head, first, empty, second, empty, empty]))
    assert (rows(tmp_path), done.rows_read) == ([63, 41], 2)
    numbered = RECIPE.replace('id = "id"', 'id = "row number"')
    assert ingest(tmp_path, f"{TEXT}{empty}\n", recipe=numbered).rows_read == 2


@pytest.mark.parametrize("age", ["1,250", "63,5", "63,000"])
def test_a_comma_in_a_file_with_semicolons_is_said_to_be_a_comma(tmp_path, age):
    """Also before three digits, where a point would have two readings."""
    text = TEXT.replace(",", ";").replace("63", age)
    for kind in ("integer", "number"):
        recipe = RECIPE.replace('"integer"', f'"{kind}"')
        hint = refused(tmp_path, "there is a comma in it", text, 'delimiter = ";"', recipe=recipe)
        assert "decimal = ','" in hint


# --- padding -------------------------------------------------------------------------------------------------

FAM = "  f1   José   0  0  1   2\n  f1 b 0 0 2 1  \n\n\tf2\tc   0 0 0   -9\n"
FAM_RECIPE = """
[source]
id = "IID"
delimiter = "whitespace"
header = ["FID", "IID", "PAT", "MAT", "SEX", "PHENO"]
[[feature]]
column = "SEX"
type = "integer"
[label]
column = "PHENO"
above = 1
range = [1, 2]
missing = "drop"
missing_markers = ["0", "-9"]
"""


def test_columns_that_are_padded_with_blanks(tmp_path):
    done = ingest(tmp_path, FAM, recipe=FAM_RECIPE)
    assert (done.rows_read, done.rows_kept, done.dropped) == (3, 2, {"PHENO": 1})
    assert rows(tmp_path) == [1, 2]
    with SiteStore.open(tmp_path / "out.h5") as store:
        assert store.labels().tolist() == [1, 0]
        assert store.row_ids()[0].tobytes() == hmac.digest(KEY, "José".encode(), hashlib.sha256)


def test_padded_columns_with_quotes_as_r_writes_them(tmp_path):
    text = ' "id"  "age" "town of birth"   "ill"\n"José" 63   "Bad Bonn"  0\n"b"\t41 "Köln"  1\n'
    recipe = RECIPE.replace('column = "town"', 'column = "town of birth"').replace('"Bonn"', '"Bad Bonn"')
    ingest(tmp_path, text, 'delimiter = "whitespace"', recipe)
    assert rows(tmp_path) == [63, 41]
    (tmp_path / "out.h5").unlink()
    refused(
        tmp_path,
        "line 3: 3 fields, but the header has 4",
        text.replace("41", ""),
        'delimiter = "whitespace"',
        recipe=recipe,
    )


def test_delimiters_that_make_no_sense(tmp_path):
    for delimiter in ("white", "", "ab", "\\n", '\\"'):
        hint = refused(tmp_path, "source.delimiter", TEXT, f'delimiter = "{delimiter}"')
        assert "whitespace" in hint


# --- no identifier -------------------------------------------------------------------------------------------

UNNAMED = RECIPE.replace('id = "id"', 'id = "row number"')


def test_rows_without_identifiers_are_numbered(tmp_path):
    text = "age,town,ill\n63,Bonn,0\n41,Köln,1\n41,Köln,1\n"
    done = ingest(tmp_path, text, recipe=UNNAMED, where={"town": "Köln"})
    assert (done.rows_kept, done.rows_elsewhere) == (2, 1)
    assert "a person who is in it twice goes unnoticed" in done.warnings[0]
    with SiteStore.open(tmp_path / "out.h5") as store:
        wanted = [hmac.digest(KEY, f"row number {n}".encode(), hashlib.sha256) for n in (2, 3)]
        assert store.row_ids().tobytes() == b"".join(wanted)  # of the file, whatever is picked
        assert store.facts["row_ids_from"] == "row number"
        assert describe(store)["row_ids_from"] == "row number"
        parts = iid_split(store, 2, seed=1, out=tmp_path / "parts")
    with SiteStore.open(parts["site-1"]) as part:
        assert part.facts["row_ids_from"] == "row number"
    shown = CliRunner().invoke(data, ["check", str(tmp_path / "out.h5")])
    assert "no identifiers: each row is named by its row number in the source" in shown.output
    shown = CliRunner().invoke(data, ["check", "--json", str(tmp_path / "out.h5")])
    assert json.loads(shown.stdout)["stores"][0]["row_ids_from"] == "row number"


def test_stores_with_identifiers_say_nothing(tmp_path):
    ingest(tmp_path, TEXT)
    with SiteStore.open(tmp_path / "out.h5") as store:
        assert store.facts["row_ids_from"] == ""
    assert "no identifiers:" not in CliRunner().invoke(data, ["check", str(tmp_path / "out.h5")]).output


def test_row_numbers_are_said_where_an_identifier_is_missing(tmp_path):
    hint = refused(tmp_path, "has no column 'id'", "age,town,ill\nx,Bonn,0\n")
    assert "id = 'row number'" in hint
    refused(tmp_path, "has a column 'row number'", "row number,age,town,ill\n1,2,Bonn,0\n", recipe=UNNAMED)


def test_moves_may_name_a_row_by_its_number(tmp_path):
    move = '[[move]]\nid = "2"\ncolumn = "age"\nvalue = "42"\n'
    ingest(tmp_path, "age,town,ill\n63,Bonn,0\n41,Köln,1\n", recipe=UNNAMED + move)
    assert rows(tmp_path) == [63, 42]


def test_the_command_says_what_the_recipe_leaves_open(tmp_path):
    key, recipe, table = tmp_path / "row.key", tmp_path / "recipe.toml", tmp_path / "data.csv"
    assert CliRunner().invoke(data, ["key", str(key)]).exit_code == 0
    recipe.write_text(UNNAMED.replace("SOURCE", "") + "above = 0\n")
    table.write_text("age,town,ill\n63,Bonn,0\n41,Köln,1\n")
    common = ["ingest", str(table), "--recipe", str(recipe), "--site", "a", "--key", str(key)]
    done = CliRunner().invoke(data, [*common, "--out", str(tmp_path / "o.h5")])
    assert done.exit_code == 0, done.exception
    assert "warning: label 'ill' has no range" in done.stderr
    assert "warning: rows are numbered" in done.stderr
