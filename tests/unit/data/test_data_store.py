import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.data import hdf5
from fedhpc.data.hdf5 import open_file
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import SiteStore, chunk_rows, write_store
from fedhpc.errors import DataError, StorageError

TWO = FeatureSet((Feature("age", "years"), Feature("höhe", "m")), Label("ill"), (2,))


def table(n, width=2):
    return np.arange(n * width, dtype=np.float32).reshape(n, width)


def make(path, n=5, feature_set=TWO, **changes):
    given_ = {
        "site": "leiden",
        "feature_set": feature_set,
        "features": np.arange(n * int(np.prod(feature_set.row_shape)), dtype=np.float32).reshape(
            n, *feature_set.row_shape
        ),
        "labels": np.arange(n).astype(feature_set.label.dtype),
        "row_ids": np.arange(n * 32).astype(np.uint8).reshape(n, 32),
        "licence": "CC0-1.0",
        "created": "2030-01-02",
    }
    write_store(path, **{**given_, **changes})
    return path


def refused(path, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        SiteStore.open(path, **options)
    assert caught.value.hint
    return caught.value


def test_what_was_written_is_read(tmp_path):
    path = make(tmp_path / "a.h5")
    with SiteStore.open(path) as store:
        assert (store.n, store.site, store.feature_names) == (5, "leiden", ("age", "höhe"))
        assert store.feature_sha256 == TWO.sha256
        assert store.feature_set == TWO
        assert store.facts["licence"] == "CC0-1.0"
        assert store.facts["created"] == "2030-01-02"
        assert store.facts["citation"] == ""
        assert store.features().dtype == np.float32
        np.testing.assert_array_equal(store.features(slice(1, 3)), table(5)[1:3])
        np.testing.assert_array_equal(store.features(np.array([4, 0, 0])), table(5)[[4, 0, 0]])
        np.testing.assert_array_equal(store.features(slice(None, None, -2)), table(5)[::-2])
        np.testing.assert_array_equal(store.labels(slice(-2, None)), [3, 4])
        assert store.labels().dtype == np.int64
        assert store.row_ids().shape == (5, 32)
        with pytest.raises(IndexError):
            store.features(np.array([5]))
        with pytest.raises(IndexError):
            store.features(np.array([-1]))
        with pytest.raises(TypeError):
            store.features(np.array([True, False]))
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a.h5"]


def test_attributes_are_those_of_schema_1(tmp_path):
    with h5py.File(make(tmp_path / "a.h5")) as file:
        assert set(file.attrs) == {
            *("schema_version", "site", "n_samples", "feature_names", "units", "coding", "label"),
            *("feature_sha256", "source_sha256", "licence", "creator", "created", "citation"),
        }
        assert file.attrs["schema_version"] == 1
        assert file.attrs["feature_names"].decode() == '["age", "höhe"]'
        assert file["features"].dtype == "<f4"


def test_images_have_one_name_per_channel(tmp_path):
    images = FeatureSet((Feature("grey"),), Label("digit"), (1, 8, 8))
    path = make(tmp_path / "a.h5", n=700, feature_set=images, compression="gzip")
    with SiteStore.open(path) as store:
        assert store.features(np.array([699, 2])).shape == (2, 1, 8, 8)
        assert store.features(np.array([699, 2]))[1, 0, 0, 0] == 2 * 64
    assert images.sha256 != FeatureSet((Feature("grey"),), Label("digit"), (1, 8, 9)).sha256
    with pytest.raises(DataError, match="2 feature names"):
        FeatureSet((Feature("a"), Feature("b")), Label("y"), (1, 8))


@given(st.integers(1, 10**7), st.lists(st.integers(1, 600), min_size=1, max_size=3))
def test_chunks_are_runs_of_whole_rows_between_10_kib_and_1_mib(n, shape):
    rows = chunk_rows(n, tuple(shape))
    size, row = rows * 4 * int(np.prod(shape)), 4 * int(np.prod(shape))
    assert 1 <= rows <= n
    assert size <= 1 << 20 or rows == 1
    assert size >= 10 << 10 or rows == n or row > 10 << 10


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9_999), max_size=60))
def test_any_rows_come_in_the_order_asked(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "picked.h5"
    wide = FeatureSet(tuple(Feature(f"f{i}") for i in range(30)), Label("y"), (30,))
    if not path.exists():
        make(path, n=10_000, feature_set=wide)  # five chunks
    with SiteStore.open(path, scan=False) as store:
        got = store.features(np.array(rows, np.int64))
        np.testing.assert_array_equal(got, table(10_000, 30)[np.array(rows, np.int64)])
        np.testing.assert_array_equal(store.labels(np.array(rows, np.int64)), rows)


WIDE = FeatureSet(tuple(Feature(f"f{i}") for i in range(30)), Label("y"), (30,))
LIMITS = [0, 100_000, 900_000, 2 << 20]  # of 1.2 MB of features, with 48 bytes for each row that is picked


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("limit", LIMITS)
def test_batches_are_the_same_whatever_memory_there_is(tmp_path, limit, compression):
    rows = np.random.default_rng(3).permutation(10_000)
    batches = [*(rows[i : i + 700] for i in range(0, 10_000, 700)), rows[:0], np.array([7, 7, 9_999], np.uint16)]
    with SiteStore.open(make(tmp_path / "a.h5", n=10_000, feature_set=WIDE, compression=compression)) as store:
        store.memory_bytes = limit
        found = list(store.features_in_turn(batches))
        assert bool(store._kept) == (limit == LIMITS[-1])
        for batch, got in zip(batches, found, strict=True):
            assert (got.dtype, got.flags.c_contiguous, got.flags.writeable) == (np.float32, True, True)
            np.testing.assert_array_equal(got, table(10_000, 30)[batch])
            np.testing.assert_array_equal(got, store.features(batch))
        assert len({id(got.base) for got in found if got.base is not None}) == 0  # none is a view of many
        assert list(store.features_in_turn([])) == []
        with pytest.raises(IndexError):
            list(store.features_in_turn([rows[:3], np.array([10_000])]))


@pytest.mark.parametrize("limit", LIMITS)
def test_no_more_is_read_at_once_than_the_limit_allows(tmp_path, limit, monkeypatch):
    batches = np.random.default_rng(3).permutation(10_000).reshape(100, 100)
    with SiteStore.open(make(tmp_path / "a.h5", n=10_000, feature_set=WIDE)) as store:
        store.memory_bytes, read = limit, []
        features = store.features
        monkeypatch.setattr(store, "features", lambda rows: read.append(len(rows)) or features(rows))
        assert sum(map(len, store.features_in_turn(batches))) == 10_000
        if store._kept:
            assert sum(array.nbytes for array in store._kept.values()) <= limit
        assert sum(read) == 10_000
        assert max(read) == 100 or max(read) * (4 * 30 + 48) <= limit
        assert (len(read) < 100) == (limit in LIMITS[1:3])


def test_labels_that_are_kept_leave_less_for_what_is_read_ahead(tmp_path, monkeypatch):
    batches = np.random.default_rng(3).permutation(10_000).reshape(100, 100)
    with SiteStore.open(make(tmp_path / "a.h5", n=10_000, feature_set=WIDE)) as store:
        store.memory_bytes, read = 500_000, []
        store.labels(batches[0])
        store.row_ids(batches[0])
        kept = sum(array.nbytes for array in store._kept.values())
        assert kept == 10_000 * (8 + 32)
        features = store.features
        monkeypatch.setattr(store, "features", lambda rows: read.append(len(rows)) or features(rows))
        assert sum(map(len, store.features_in_turn(batches))) == 10_000
        assert 100 < max(read) <= (500_000 - kept) // (4 * 30 + 48)


def test_what_is_kept_stays_within_the_limit_and_in_its_process(tmp_path):
    with SiteStore.open(make(tmp_path / "a.h5", n=1000)) as store:  # features and labels of 8 kB each, ids of 32 kB
        store.memory_bytes = 17_000
        every = np.arange(1000)
        for _ in range(2):
            np.testing.assert_array_equal(store.labels(every), every)
            np.testing.assert_array_equal(store.features(every), table(1000))
            assert store.row_ids(every).shape == (1000, 32)
        assert store._kept.keys() == {"labels", "features"}
        store.features(every)[:] = -1  # the caller's own
        np.testing.assert_array_equal(store.features(every), table(1000))
        assert pickle.loads(pickle.dumps(store))._kept == {}
        store.close()
        assert store._kept == {}
        np.testing.assert_array_equal(store.features(np.array([999])), table(1000)[999:])


def test_values_of_either_byte_order_are_kept_as_they_are(tmp_path):
    path = make(tmp_path / "a.h5", n=50)
    with h5py.File(path, "r+") as file:
        replace(file, "features", data=table(50).astype(">f4"))
    for limit in (0, 1 << 20):
        with SiteStore.open(path) as store:
            store.memory_bytes = limit
            got = store.features(np.array([3, 1]))
            assert got.dtype == np.dtype("=f4")
            np.testing.assert_array_equal(got, table(50)[[3, 1]])


def test_blocks_of_rows_are_written_as_one_array(tmp_path):
    path = make(tmp_path / "a.h5", features=iter([table(5)[:2], table(5)[2:]]))
    np.testing.assert_array_equal(SiteStore.open(path).features(), table(5))
    with pytest.raises(DataError, match="4 rows of features for 5"):
        make(tmp_path / "b.h5", features=iter([table(4)]))
    with pytest.raises(DataError, match="after row 4"):
        make(tmp_path / "b.h5", features=iter([table(4), table(2)]))
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    path = make(tmp_path / "a.h5", n=3000)
    os.truncate(path, int(path.stat().st_size * keep))
    refused(path, "cut short|not HDF5")


def test_missing_files_and_directories_are_bad_data(tmp_path):
    assert refused(tmp_path / "no.h5", "does not exist").exit_code == 65
    refused(tmp_path, "is not a regular file")
    os.mkfifo(tmp_path / "pipe.h5")
    refused(tmp_path / "pipe.h5", "is not a regular file")
    (tmp_path / "text.h5").write_text("hello")
    refused(tmp_path / "text.h5", "not HDF5")


def test_a_store_without_rows_may_be_looked_at_but_not_trained_on(tmp_path):
    path = make(tmp_path / "a.h5", n=0)
    refused(path, "holds no rows")
    assert SiteStore.open(path, allow_empty=True).features().shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, bad):
    values = table(5)
    values[[1, 3], 1] = bad
    with pytest.raises(DataError, match=r"'höhe' \(2 rows\)"):
        make(tmp_path / "a.h5", features=values)
    path = make(tmp_path / "b.h5")
    with h5py.File(path, "r+") as file:
        file["features"][[1, 3], 1] = bad
    refused(path, r"'höhe' \(2 rows\)")
    assert SiteStore.open(path, scan=False).n == 5
    quantity = FeatureSet(TWO.features, Label("cost", "float32"), (2,))
    with pytest.raises(DataError, match="1 labels are not finite"):
        make(tmp_path / "c.h5", feature_set=quantity, labels=np.array([1, 2, bad, 4, 5], np.float32))


@pytest.mark.parametrize("name", ["features", "labels", "row_ids"])
def test_masked_arrays_are_refused(tmp_path, name):
    """HDF5 would get what is under the mask."""
    whole = {"features": table(5), "labels": np.arange(5), "row_ids": np.zeros((5, 32), np.uint8)}[name]
    masked = np.ma.masked_array(whole, mask=np.arange(whole.size).reshape(whole.shape) == 1)
    with pytest.raises(DataError, match=f"{name} are a masked array"):
        make(tmp_path / "a.h5", **{name: masked})
    with pytest.raises(DataError, match=f"{name} are a masked array"):
        make(tmp_path / "a.h5", **{name: [masked] if name == "features" else masked})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "wider"),
    [
        ("features", np.full((5, 2), 300.0)),
        ("features", np.full((5, 2), 2**40)),
        ("labels", np.full(5, 2**63, np.uint64)),
        ("labels", np.zeros(5, np.int32)),
        ("row_ids", np.full((5, 32), 300)),
    ],
)
def test_nothing_is_narrowed_on_its_way_into_a_store(tmp_path, name, wider):
    """HDF5 would saturate: 300 becomes 255."""
    with pytest.raises(DataError, match=f"{name} are {wider.dtype}"):
        make(tmp_path / "a.h5", **{name: wider})
    assert not list(tmp_path.iterdir())


def test_what_row_ids_were_made_from_is_said_where_it_is_no_identifier(tmp_path):
    with SiteStore.open(make(tmp_path / "a.h5", row_ids_from="row number")) as store:
        assert store.facts["row_ids_from"] == "row number"
    with h5py.File(make(tmp_path / "b.h5"), "r") as file:
        assert "row_ids_from" not in file.attrs  # stores of before have no such attribute
    with SiteStore.open(tmp_path / "b.h5") as store:
        assert store.facts["row_ids_from"] == ""


def replace(file, name, **options):
    del file[name]
    file.create_dataset(name, **options)


def virtual(file):
    layout = h5py.VirtualLayout((5,), "i8")
    layout[:] = h5py.VirtualSource("/other.h5", "x", shape=(5,))
    del file["labels"]
    file.create_virtual_dataset("labels", layout)


def link(file, target):
    del file["labels"]
    file["labels"] = target


DAMAGE = {
    "version 2": lambda f: f.attrs.__setitem__("schema_version", 2),
    "'schema_version' has the wrong type": lambda f: f.attrs.__setitem__("schema_version", "1"),
    "'site' has the wrong type": lambda f: f.attrs.__setitem__("site", "leiden"),  # variable length
    "'site' is missing": lambda f: f.attrs.__delitem__("site"),
    "lengths differ": lambda f: f.attrs.__setitem__("n_samples", 4),
    "lengths differ: .*labels 4": lambda f: replace(f, "labels", data=np.zeros(4, np.int64)),
    "lengths differ: .*row_ids -1": lambda f: replace(f, "row_ids", data=np.zeros((5, 31), np.uint8)),
    "dataset 'labels' is missing": lambda f: f.__delitem__("labels"),
    "dtype float64": lambda f: replace(f, "features", data=np.zeros((5, 2))),
    "dtype object": lambda f: replace(f, "labels", data=["a"] * 5),
    "labels are float32": lambda f: replace(f, "labels", data=np.zeros(5, np.float32)),
    "2 feature names": lambda f: replace(f, "features", data=np.zeros((5, 3), np.float32)),
    "feature_sha256 is not the hash": lambda f: hdf5.put_text(f, "units", '["years", "feet"]'),
    "not a JSON list": lambda f: hdf5.put_text(f, "units", '{"a": 1}'),
    "2 names, 1 units": lambda f: hdf5.put_text(f, "units", '["years"]'),
    "not the JSON of a label": lambda f: hdf5.put_text(f, "label", '{"name": "ill", "colour": "red"}'),
    "is there twice": lambda f: hdf5.put_text(f, "feature_names", '["age", "age"]'),
    "not printable": lambda f: hdf5.put_text(f, "licence", "a\x1b[2J"),
    "keeps its values in other files": virtual,
    "is a link to elsewhere": lambda f: link(f, h5py.ExternalLink("/etc/passwd", "x")),
    "is a link to elsewhere ": lambda f: link(f, h5py.SoftLink("/row_ids")),
    "is not an array": lambda f: (f.__delitem__("labels"), f.create_group("labels")),
    "filter that is not allowed": lambda f: replace(f, "labels", data=np.zeros(5, np.int64), fletcher32=True),
    "chunks larger than 64 MiB": lambda f: replace(
        f, "features", data=table(5), maxshape=(None, 2), chunks=(9 * 10**6, 2), compression="gzip"
    ),
    "claims 1600000000000 bytes but 0": lambda f: replace(
        f, "features", shape=(2 * 10**11, 2), dtype="f4", chunks=(100, 2)
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_files_that_are_not_what_they_say_are_refused(tmp_path, message):
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        DAMAGE[message](file)
    refused(path, message.strip())


def test_external_storage_is_refused(tmp_path):
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        replace(file, "labels", shape=(5,), dtype="i8", external=[("/etc/hostname", 0, 40)])
    refused(path, "in other files")


def test_flipped_bytes_never_crash_and_never_raise_anything_else(tmp_path):
    path = make(tmp_path / "a.h5", n=50)
    whole = path.read_bytes()
    refusals = 0
    for position in range(0, len(whole), 13):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            with SiteStore.open(path) as store:
                store.features()
        except DataError:
            refusals += 1
    assert refusals > 20


def test_a_file_changed_in_use_is_refused(tmp_path):
    path = make(tmp_path / "a.h5")
    store = SiteStore.open(path)
    make(path, n=6)
    with pytest.raises(DataError, match="changed while in use"):
        store.features()


def _sum_in_child(store, queue):
    total = float(store.features().sum())
    assert store.features(np.array([4]))[0, 1] == 9  # in memory, or read here
    queue.put((total, store._file._pid == os.getpid()))  # the handle is the child's own


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_open_the_file_themselves(tmp_path, start):
    store = SiteStore.open(make(tmp_path / "a.h5"))
    assert store._file._file is None  # nothing is open before the first read
    store.features()
    store.features(np.array([0]))
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=60) == (45.0, True)
    child.join(60)
    assert child.exitcode == 0
    assert pickle.loads(pickle.dumps(store))._file._file is None


def test_a_failed_sync_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = make(tmp_path / "a.h5")
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        make(path, n=9)
    assert "free space" in caught.value.hint
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.h5"]


def test_a_full_disk_in_the_middle_of_a_write_is_one_clean_error(tmp_path):
    program = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from test_data_store import make, Path
from fedhpc.errors import StorageError
try:
    make(Path({str(tmp_path)!r}) / "a.h5", n=500_000)
except StorageError as error:
    print(error.lines())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("error: cannot write")
    assert "free space" in done.stdout
    assert os.listdir(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_a_directory_that_is_not_there_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        make(tmp_path / "no" / "a.h5")


def test_temporaries_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    import fcntl

    dead = tmp_path / f".a.h5.{'0' * 16}.tmp"
    living = tmp_path / f".a.h5.{'1' * 16}.tmp"
    other = tmp_path / f".b.h5.{'2' * 16}.tmp"
    for path in (dead, living, other):
        path.write_bytes(b"half")
    with living.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        make(tmp_path / "a.h5")
    assert sorted(os.listdir(tmp_path)) == sorted([living.name, other.name, "a.h5"])


@pytest.mark.parametrize("locking", [False, None, True, "best-effort"])
def test_a_file_that_the_process_has_open_already_is_read(tmp_path, locking):
    """However it was opened: HDF5 refuses to open it a second time with other flags."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
    with h5py.File(path, "r", locking=locking), open_file(path) as again:
        assert again["x"][()].tolist() == [0, 1, 2]
