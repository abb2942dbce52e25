"""Splits, checks, keys, and the commands `fedhpc data …`."""

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.cli.data import data
from fedhpc.data.check import describe
from fedhpc.data.rowkey import create_key, read_key
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.split import dirichlet_rows, dirichlet_split, iid_rows, iid_split
from fedhpc.data.store import SiteStore, write_store
from fedhpc.errors import ConfigError, DataError, PolicyError, StorageError

TWO = FeatureSet((Feature("age", "years"), Feature("bmi", "kg/m2")), Label("ill"), (2,))


def make(path, n=40, feature_set=TWO):
    write_store(
        path,
        site="leiden",
        feature_set=feature_set,
        features=np.arange(n * 2, dtype=np.float32).reshape(n, 2) + 1000,
        labels=np.arange(n) % 4,
        row_ids=np.random.default_rng(0).integers(0, 256, (n, 32), np.uint8),
        licence="CC0-1.0",
    )
    return path


def fedhpc_data(*arguments):
    return CliRunner().invoke(data, [str(a) for a in arguments])


def error_of(result, kind):
    assert isinstance(result.exception, kind), result.exception
    return result.exception


SIZES = st.integers(1, 30).flatmap(lambda k: st.tuples(st.integers(k, 300), st.just(k)))
SEEDS = st.integers(0, 2**32)


def check_partition(parts, n, sites):
    assert len(parts) == sites
    assert all(len(part) for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@given(SIZES, SEEDS)
def test_iid_parts_are_even_and_whole(sizes, seed):
    n, sites = sizes
    parts = iid_rows(n, sites, seed)
    check_partition(parts, n, sites)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None)
@given(SIZES, SEEDS, st.floats(1e-3, 1e6), st.integers(1, 12))
def test_dirichlet_parts_are_whole_and_none_is_empty(sizes, seed, alpha, classes):
    n, sites = sizes
    labels = np.arange(n) % classes
    parts = dirichlet_rows(labels, sites, alpha, seed)
    check_partition(parts, n, sites)
    for first, second in zip(parts, dirichlet_rows(labels, sites, alpha, seed), strict=True):
        np.testing.assert_array_equal(first, second)


def skew(alpha):
    """Largest share of one class at a site, averaged over sites."""
    labels = np.arange(4000) % 4
    parts = dirichlet_rows(labels, 8, alpha, seed=1)
    return np.mean([np.bincount(labels[part], minlength=4).max() / len(part) for part in parts])


def test_alpha_sets_the_skew():
    assert skew(1e6) == pytest.approx(0.25, abs=0.01)
    assert skew(1e6) < skew(1.0) < skew(0.01)
    assert skew(0.01) > 0.75


def test_seeds_matter_and_bad_cuts_are_refused():
    labels = np.arange(100) % 4
    assert any(len(a) != len(b) for a, b in zip(*(dirichlet_rows(labels, 4, 1, seed) for seed in (1, 2)), strict=True))
    assert not np.array_equal(iid_rows(100, 2, 1)[0], iid_rows(100, 2, 2)[0])
    with pytest.raises(DataError, match="3 rows cannot be cut for 4"):
        iid_rows(3, 4, 0)
    with pytest.raises(ConfigError, match="0 sites"):
        iid_rows(3, 0, 0)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="out of range"):
            dirichlet_rows(labels, 4, alpha, 0)
    with pytest.raises(DataError, match="needs classes"):
        dirichlet_rows(labels.astype(np.float32), 4, 1.0, 0)


def test_a_split_does_not_write_over_its_own_source(tmp_path):
    path = make(tmp_path / "site-2.h5")
    before = path.read_bytes()
    with SiteStore.open(path) as store, pytest.raises(ConfigError, match="would be written over"):
        iid_split(store, 3, seed=5, out=tmp_path)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
def test_splits_hold_the_rows_of_the_whole(tmp_path, how):
    with SiteStore.open(make(tmp_path / "all.h5")) as store:
        if how == "iid":
            paths = iid_split(store, 3, seed=5, out=tmp_path / "sites")
        else:
            paths = dirichlet_split(store, 3, alpha=0.5, seed=5, out=tmp_path / "sites")
        rows = zip(store.row_ids(), store.features(), store.labels(), strict=True)
        whole = {row.tobytes(): (x, y) for row, x, y in rows}
    assert list(paths) == ["site-1", "site-2", "site-3"]
    found = 0
    for name, path in paths.items():
        with SiteStore.open(path) as part:
            assert part.site == name
            assert part.feature_sha256 == TWO.sha256
            assert part.facts["licence"] == "CC0-1.0"
            for row, x, y in zip(part.row_ids(), part.features(), part.labels(), strict=True):
                np.testing.assert_array_equal(whole[row.tobytes()][0], x)
                assert whole[row.tobytes()][1] == y
            found += part.n
    assert found == 40


def test_describe_tells_facts_and_values_only_when_asked(tmp_path):
    with SiteStore.open(make(tmp_path / "a.h5")) as store:
        facts = describe(store)
        assert facts["n"] == 40
        assert [f["name"] for f in facts["features"]] == ["age", "bmi"]
        assert all(f["missing"] == 0 for f in facts["features"])
        assert "min" not in json.dumps(facts)
        shown = describe(store, values=True)["features"]
        assert (shown[0]["min"], shown[1]["max"]) == (1000, 1079)


def test_key_files_are_private(tmp_path):
    path = tmp_path / "key"
    create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read_key(path)) == 32
    assert path.read_text().strip() == read_key(path).hex()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        create_key(path)
    assert path.read_bytes() == before
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(PolicyError, match="can be read by others") as caught:
            read_key(path)
        assert "chmod 600" in caught.value.hint
    path.chmod(0o600)
    path.write_text("ab" * 31)
    with pytest.raises(ConfigError, match="not a row-id key"):
        read_key(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_key(tmp_path / "no")
    with pytest.raises(StorageError):
        create_key(tmp_path / "no" / "key")


# --- commands ------------------------------------------------------------------------------------------------


def test_from_csv_to_four_sites(tmp_path):
    from fedhpc.demo.heart.hospitals import CSV, RECIPE

    key = tmp_path / "row.key"
    assert fedhpc_data("key", key).exit_code == 0
    store = tmp_path / "hungary.h5"
    common = ("ingest", CSV, "--recipe", RECIPE, "--site", "hungary", "--out", store, "--key", key)
    result = fedhpc_data(*common, "--where", "dataset=Hungary")
    assert result.exit_code == 0, result.exception
    assert f"wrote {store}: 261 of 920 rows\n  626 rows left out by where\n" in result.output
    assert "rows dropped because 'chol' is missing" in result.output
    result = fedhpc_data(
        "split", store, "--sites", 3, "--how", "dirichlet", "--alpha", 0.3, "--seed", 1, "--out", tmp_path / "s"
    )
    assert result.exit_code == 0, result.exception
    assert sorted(os.listdir(tmp_path / "s")) == ["site-1.h5", "site-2.h5", "site-3.h5"]
    result = fedhpc_data("check", store, *sorted((tmp_path / "s").iterdir()))
    assert result.exit_code == 0
    assert "261 rows, 13 features" in result.output
    assert "serum cholesterol [mg/dl]: integer, missing 0\n" in result.output
    key.chmod(0o644)
    assert error_of(fedhpc_data(*common), PolicyError).exit_code == 77
    key.chmod(0o600)
    assert error_of(fedhpc_data(*common, "--where", "dataset"), ConfigError).exit_code == 64


def test_check_names_the_features_that_differ(tmp_path):
    first = make(tmp_path / "a.h5")
    months = FeatureSet((Feature("age", "months"), Feature("height", "m")), Label("ill"), (2,))
    second = make(tmp_path / "b.h5", feature_set=months)
    result = fedhpc_data("check", first, second)
    error = error_of(result, DataError)
    assert error.exit_code == 65
    assert "'height' is only in the second" in error.what
    assert "'age': unit 'years' in the first, 'months' in the second" in error.what
    result = fedhpc_data("check", "--json", first, second)
    error_of(result, DataError)
    shown = json.loads(result.stdout)
    assert [fact["n"] for fact in shown["stores"]] == [40, 40]
    assert list(shown["differences"]) == [str(second)]


def test_check_shows_values_only_with_a_warning(tmp_path):
    path = make(tmp_path / "a.h5")
    result = fedhpc_data("check", path)
    assert result.exit_code == 0
    assert "1000" not in result.output
    result = fedhpc_data("check", path, "--values")
    assert "age [years]: number, missing 0  1000 … 1078" in result.stdout
    assert "do not let this output leave the site" in result.stderr


def test_check_refuses_a_damaged_file(tmp_path):
    path = make(tmp_path / "a.h5")
    os.truncate(path, 3000)
    assert "cut short" in error_of(fedhpc_data("check", path), DataError).what
