"""Texts that look the same are the same: identifiers, headers, levels, and what rows are picked by."""

import hashlib
import hmac
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.data.ingest import ingest_csv
from fedhpc.data.recipe import read_recipe
from fedhpc.data.spelling import visible
from fedhpc.data.store import SiteStore
from fedhpc.errors import DataError

KEY = bytes(range(32))
RECIPE = """
[source]
id = "id"
[[feature]]
column = "größe"
type = "number"
[[feature]]
column = "ort"
type = "category"
levels = ["Köln", "Zürich"]
missing = "drop"
[label]
column = "y"
"""
NFD = unicodedata.normalize("NFD", RECIPE)


def ingest(directory, ids, recipe=RECIPE, place="Köln", header="id,größe,ort,y", **options):
    (directory / "recipe.toml").write_text(recipe)
    text = "\n".join([header, *(f"{i},1,{place},0" for i in ids)])
    (directory / "data.csv").write_text(text)
    made = read_recipe(directory / "recipe.toml")
    return ingest_csv(directory / "data.csv", made, directory / "out.h5", site="a", key=KEY, **options)


INVISIBLE = {
    "zero width space": "A\u200b1",
    "byte order mark": "\ufeffA1",
    "byte order mark within": "A\ufeff1",
    "soft hyphen": "A\u00ad1",
    "left-to-right mark": "A1\u200e",
    "right-to-left override": "\u202eA1\u202c",
    "isolates": "\u2066A1\u2069",
    "word joiner": "A\u20601",
    "zero width joiner": "A\u200d1",
    "variation selector": "A\ufe0f1",
    "combining grapheme joiner": "A\u034f1",
    "Hangul filler": "A1\u3164",
    "tag": "A1\U000e0041",
    "control": "A\x011",
    "no-break space around": "\u00a0A1\u202f",
    "ideographic space around": "\u3000A1",
    "Arabic letter mark": "\u061cA1",
}


@pytest.mark.parametrize("how", INVISIBLE)
def test_a_person_is_found_behind_invisible_characters(tmp_path, how):
    with pytest.raises(DataError, match="line 3: column 'id' repeats the identifier of line 2") as caught:
        ingest(tmp_path, ["A1", INVISIBLE[how]])
    assert "A1" not in caught.value.lines()


@pytest.mark.parametrize(
    ("first", "second"),
    [("Müller1", unicodedata.normalize("NFD", "Müller1")), ("Å1", "\u212b1"), ("A 1", "A\u00a01"), ("A 1", "A\u20091")],
)
def test_accents_and_blanks_have_one_spelling(tmp_path, first, second):
    assert first != second
    with pytest.raises(DataError, match="repeats the identifier"):
        ingest(tmp_path, [first, second])


def test_what_can_be_seen_stays_distinct(tmp_path):
    ids = ["7", "007", "7.0", "a1", "A1", "A  1", "A 1", "Ａ1", "A-1", "O1", "01", "é1", "e1"]
    assert ingest(tmp_path, ids).rows_kept == len(ids)


def test_an_identifier_of_nothing_visible_is_empty(tmp_path):
    with pytest.raises(DataError, match="line 2: column 'id' is empty"):
        ingest(tmp_path, ["\u200b\ufeff"])


def test_row_ids_do_not_depend_on_the_spelling_and_plain_ones_are_as_ever(tmp_path):
    """Splits and held-out rows follow row ids: a plain identifier must give the id that it always gave."""
    ids = ["p1", "A  1", "x~!@#$%^&*()_+", "Müller", "山田"]
    found = []
    for spelled in (ids, [unicodedata.normalize("NFD", i) + "\u200b" for i in ids]):
        ingest(tmp_path, spelled)
        with SiteStore.open(tmp_path / "out.h5") as store:
            found.append(store.row_ids().tobytes())
    assert found[0] == found[1] == b"".join(hmac.digest(KEY, i.encode(), hashlib.sha256) for i in ids)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_printable_ascii_is_left_alone(text):
    assert visible(text) == text.strip(" ")


@given(st.text())
def test_what_is_visible_stays_so(text):
    once = visible(text)
    assert visible(once) == once
    assert visible(unicodedata.normalize("NFD", text)) == once


@pytest.mark.parametrize("recipe", [RECIPE, NFD])
def test_headers_levels_and_where_have_one_spelling(tmp_path, recipe):
    """A file from a Mac has decomposed accents, a recipe typed elsewhere has not."""
    for place in ("Köln", unicodedata.normalize("NFD", "Köln"), "Köln\u200b"):
        for header in ("id,größe,ort,y", unicodedata.normalize("NFD", "id,größe,ort,y"), "id,gr\u00adöße,ort\ufeff,y"):
            done = ingest(tmp_path, ["1", "2"], recipe, place, header, where={"ort": "Köln"})
            assert (done.rows_kept, done.rows_elsewhere) == (2, 0)


def test_the_features_of_a_recipe_have_one_spelling(tmp_path):
    assert NFD != RECIPE
    hashes = set()
    for recipe in (RECIPE, NFD):
        ingest(tmp_path, ["1"], recipe)
        with SiteStore.open(tmp_path / "out.h5") as store:
            hashes.add(store.feature_sha256)
    assert len(hashes) == 1


def test_numbers_are_never_cleaned(tmp_path):
    """A soft hyphen may have been a minus."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    for value in ("\u00ad5", "5\u200b", "\u200e-5", "\u22125", "５"):
        (tmp_path / "data.csv").write_text(f"id,größe,ort,y\n1,{value},Köln,0\n")
        made = read_recipe(tmp_path / "recipe.toml")
        with pytest.raises(DataError, match="line 2: column 'größe': it is not a number"):
            ingest_csv(tmp_path / "data.csv", made, tmp_path / "out.h5", site="a", key=KEY)


def test_moves_find_the_person_in_every_spelling(tmp_path):
    move = '[[move]]\nid = "Müller1"\ncolumn = "ort"\nvalue = "Zürich"\n'
    done = ingest(tmp_path, [unicodedata.normalize("NFD", "Müller1"), "2"], RECIPE + move, where={"ort": "Zürich"})
    assert done.rows_kept == 1
