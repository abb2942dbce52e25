"""Tables of very many columns: recipes by pattern or list, work that grows with the cells, bounded memory."""

import errno
import random
import sys

import numpy as np
import pytest

from fedhpc.data import csv_file, kept_rows
from fedhpc.data.ingest import ingest_csv
from fedhpc.data.kept_rows import KeptRows
from fedhpc.data.recipe import read_recipe
from fedhpc.data.schema import Feature, FeatureSet, Label, compare_features
from fedhpc.data.store import SiteStore
from fedhpc.errors import ConfigError, DataError, StorageError

HEAD = '[source]\nid = "id"\n'
LABEL = '[label]\ncolumn = "y"\n'
BETA = '[[feature]]\npattern = "cg*"\ntype = "number"\nunit = "beta"\n'


def ingest(directory, header, rows, features, out="out.h5", **options):
    (directory / "recipe.toml").write_text(HEAD + features + LABEL)
    lines = [",".join(map(str, line)) for line in (header, *rows)]
    (directory / "data.csv").write_text("\n".join(lines))
    made = read_recipe(directory / "recipe.toml")
    ingest_csv(directory / "data.csv", made, directory / out, site="a", key=bytes(32), **options)
    return SiteStore.open(directory / out)


# --- many columns at once ------------------------------------------------------------------------------------


def test_a_pattern_gives_the_same_features_whatever_the_order_of_a_file(tmp_path):
    columns = [f"cg{i:03d}" for i in range(40)]
    shuffled = random.Random(1).sample(columns, len(columns))
    hashes = []
    for name, order in (("a.h5", columns), ("b.h5", shuffled)):
        row = [1, *(int(column[2:]) / 64 for column in order), "x", 1]
        with ingest(tmp_path, ["id", *order, "batch", "y"], [row], BETA, name) as store:
            assert store.feature_names == tuple(columns)
            assert store.features()[0].tolist() == [i / 64 for i in range(40)]
            assert {feature.unit for feature in store.feature_set.features} == {"beta"}
            hashes.append(store.feature_sha256)
    assert hashes[0] == hashes[1]


def test_a_pattern_leaves_alone_what_the_recipe_names_elsewhere(tmp_path):
    features = (
        '[[feature]]\ncolumn = "cg2"\nname = "two"\ntype = "integer"\n'
        + BETA
        + '[[feature]]\npattern = "?"\ntype = "number"\n'
        + '[[feature]]\npattern = "[r-s]*"\ntype = "category"\nlevels = ["a", "b"]\ncoding = "one-hot"\n'
    )
    header = ["y", "s9", "cg3", "id", "x", "cg1", "cg2", "CG4", "w"]
    with ingest(tmp_path, header, [[1, "b", 0.3, 7, 5, 0.1, 2, 9, 6]], features) as store:
        assert store.feature_names == ("two", "cg1", "cg3", "w", "x", "s9=a", "s9=b")
        assert store.features()[0].tolist() == [float(np.float32(v)) for v in (2, 0.1, 0.3, 6, 5, 0, 1)]


def test_a_pattern_leaves_alone_what_picks_rows(tmp_path):
    with ingest(
        tmp_path, ["id", "cg1", "cg2", "y"], [[1, 0.5, 1, 1], [2, 0.25, 2, 0]], BETA, where={"cg2": "2"}
    ) as store:
        assert store.feature_names == ("cg1",)
        assert store.features().tolist() == [[0.25]]


def test_a_pattern_takes_policies_and_codes(tmp_path):
    features = BETA + 'missing = "fill"\nfill = 0.5\nmissing_markers = ["-9", "2"]\n'
    with ingest(tmp_path, ["id", "cg1", "cg2", "y"], [[1, "-9.0", 0.25, 1], [2, "NA", "2.0", 0]], features) as store:
        assert store.features().tolist() == [[0.5, 0.25], [0.5, 0.5]]


def test_patterns_that_cannot_be_used(tmp_path):
    header, rows = ["id", "cg1", "y"], [[1, 0.5, 1]]
    with pytest.raises(DataError, match="no column fits pattern 'rs\\*'"):
        ingest(tmp_path, header, rows, BETA.replace("cg*", "rs*"))
    for more, message in (
        ('column = "cg1"\n', "one of column, pattern and columns"),
        ('name = "x"\n', "name belongs to a single"),
    ):
        with pytest.raises(ConfigError, match=message):
            ingest(tmp_path, header, rows, BETA + more)
    with pytest.raises(ConfigError, match="one of column, pattern and columns"):
        ingest(tmp_path, header, rows, '[[feature]]\ntype = "number"\n')
    with pytest.raises(DataError, match="column 'cg1' is there 2 times"):
        ingest(tmp_path, ["id", "cg1", "cg1", "y"], [[1, 0.5, 0.5, 1]], BETA)
    with pytest.raises(DataError, match="line 2: column 'cg2': it is not a number"):
        ingest(tmp_path, ["id", "cg1", "cg2", "y"], [[1, 0.5, "high", 1]], BETA)


def test_a_list_names_the_columns_that_all_sites_have(tmp_path):
    """Two arrays measure different probes: the list is what they share, in its own order."""
    (tmp_path / "probes.txt").write_text("\ufeffcg9\r\ncg1\n\n cg5 \n")
    features = '[[feature]]\ncolumns = "probes.txt"\ntype = "number"\n'
    hashes = set()
    for header in (["id", "cg1", "cg2", "cg5", "cg9", "y"], ["id", "cg9", "cg5", "cg1", "cg7", "y"]):
        row = [int(name[2:]) if name[:2] == "cg" else 1 for name in header]
        with ingest(tmp_path, header, [row], features) as store:
            assert store.feature_names == ("cg9", "cg1", "cg5")
            assert store.features()[0].tolist() == [9, 1, 5]
            hashes.add(store.feature_sha256)
    assert len(hashes) == 1
    with pytest.raises(DataError, match="has no column 'cg5'"):
        ingest(tmp_path, ["id", "cg9", "cg1", "y"], [[1, 1, 1, 1]], features)
    for text, message in (
        ("a\na\n", "names a column twice"),
        ("\n", "names no column"),
        ("\ud800", "cannot read|not UTF-8"),
    ):
        (tmp_path / "probes.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ConfigError, match=message):
            ingest(tmp_path, ["id", "y"], [[1, 1]], features)
    (tmp_path / "probes.txt").unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        ingest(tmp_path, ["id", "y"], [[1, 1]], features)


def test_different_sets_of_columns_are_told_in_few_lines():
    first = FeatureSet(tuple(Feature(f"cg{i}") for i in range(1000)), Label("y"), (1000,))
    second = FeatureSet(tuple(Feature(f"cg{i}", "beta") for i in range(500, 1600)), Label("y"), (1100,))
    lines = compare_features(first, second)
    assert lines[0] == "'cg0' is only in the first"
    assert "and 480 more like this" in lines
    assert "and 580 more like this" in lines
    assert len(lines) == 63


# --- work ----------------------------------------------------------------------------------------------------


class Header(list):
    """A header that counts how often it is searched from one end to the other."""

    searches = 0

    def __contains__(self, name):
        Header.searches += 1
        return super().__contains__(name)

    def index(self, *arguments):
        Header.searches += 1
        return super().index(*arguments)

    def count(self, *arguments):
        Header.searches += 1
        return super().count(*arguments)


def explicit(columns):
    return "".join(f'[[feature]]\ncolumn = "cg{i}"\ntype = "number"\n' for i in range(columns))


def calls_for(directory, columns, features):
    """How many functions are called, of Python and of C, to read a recipe and make a store of 3 rows and open it."""
    header = ["id", *(f"cg{i}" for i in range(columns)), "y"]
    rows = [[i, *([0.25] * columns), 1] for i in range(3)]
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    (directory / "warm").mkdir(exist_ok=True)
    sys.setprofile(count)
    try:
        ingest(directory, header, rows, features).close()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("recipe", ["explicit", "pattern"])
def test_work_grows_with_the_columns(tmp_path, monkeypatch, recipe):
    """60,000 columns once took 51 s, because each was looked for from the first on."""
    spelled = csv_file.CsvFile.header
    monkeypatch.setattr(csv_file.CsvFile, "header", lambda self: Header(spelled(self)))
    monkeypatch.setattr(Header, "searches", 0)
    few, many = (calls_for(tmp_path, n, explicit(n) if recipe == "explicit" else BETA) for n in (500, 2000))
    assert Header.searches <= 4
    assert many < 4.5 * few
    assert many < 2000 * (250 if recipe == "explicit" else 150)


def test_a_recipe_of_many_tables_may_be_large(tmp_path):
    columns = [f"cg{i}" for i in range(4)]
    comment = "# " + "x" * (5 << 20) + "\n"
    with ingest(tmp_path, ["id", *columns, "y"], [[1, *([0.5] * 4), 1]], comment + explicit(4)) as store:
        assert store.n == 1


# --- memory --------------------------------------------------------------------------------------------------


def test_rows_beyond_a_limit_wait_in_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_rows, "_IN_MEMORY_BYTES", 4096)
    monkeypatch.setattr(kept_rows, "_BLOCK_BYTES", 1024)
    wanted = np.random.default_rng(0).random((501, 16), np.float32)
    kept = KeptRows(16, tmp_path)
    for row in wanted:
        kept.next_row()[:] = 7  # a row that is dropped
        kept.next_row()[:] = row
        kept.keep()
    blocks = list(kept.blocks())
    assert kept._file._rolled
    assert not list(tmp_path.iterdir())
    assert max(block.nbytes for block in blocks) <= 1024
    np.testing.assert_array_equal(np.concatenate(blocks), wanted)
    kept.close()


def test_a_row_wider_than_a_block_is_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_rows, "_BLOCK_BYTES", 16)
    header = ["id", *(f"cg{i}" for i in range(9)), "y"]
    rows = [[n, *(n * 10 + i for i in range(9)), n] for n in range(5)]
    with ingest(tmp_path, header, rows, BETA) as store:
        assert store.features().tolist() == [[n * 10 + i for i in range(9)] for n in range(5)]
        assert store.labels().tolist() == list(range(5))


def test_a_full_disk_while_rows_wait(tmp_path, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(kept_rows.tempfile, "SpooledTemporaryFile", lambda *_, **__: Full())
    with pytest.raises(StorageError, match="No space left") as caught:
        ingest(tmp_path, ["id", "cg1", "y"], [[1, 0.5, 1]], BETA)
    assert caught.value.exit_code == 74
    assert not (tmp_path / "out.h5").exists()
