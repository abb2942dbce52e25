import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedhpc.errors import DataError, InternalError, PolicyError, StorageError
from fedhpc.federation.checkpoint import Checkpoint, CheckpointStore
from fedhpc.rounds.beginning import _refuse_without_blind
from fedhpc.train.checkpoint_files import Hdf5Checkpoints


def a_checkpoint(round_=1, size=10):
    random = np.random.default_rng(round_)
    return Checkpoint(
        round_=round_,
        sums=3 * round_,
        config=bytes(range(32)),
        tensors={
            "layer.0/weight": random.random((size, 3), np.float32),
            "..": np.asfortranarray(random.random((2, 3))),
            "scalar": np.array(2.5, np.float32),
            "empty": np.empty((0, 4), np.float32),
            "/": np.array([np.nan, np.inf, -0.0]),
        },
        outer={"momentum": np.ones(3), "big endian": np.arange(3, dtype=">i4")},
        private={"rng": np.arange(9, dtype=np.uint8), "mask": np.array([True, False]), "half": np.ones(2, np.float16)},
        ledger=b"\1" * 32,
        blind=b"\2" * 32,
        exchange="mpi",
        signed=(b'{"from":1}', b'{"from":2}'),
    )


def same(first, second):
    for field in dataclasses.fields(Checkpoint):
        mine, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(mine, dict):
            assert list(mine) == list(theirs)
            for name in mine:
                assert mine[name].dtype.newbyteorder("=") == theirs[name].dtype.newbyteorder("=")
                assert mine[name].shape == theirs[name].shape
                np.testing.assert_array_equal(mine[name], theirs[name], strict=False)
        else:
            assert mine == theirs, field.name
    return True


def test_what_was_saved_is_loaded(tmp_path):
    store: CheckpointStore = Hdf5Checkpoints(tmp_path / "run" / "checkpoints")
    assert store.rounds() == []
    store.save(a_checkpoint(12))
    assert same(Hdf5Checkpoints(tmp_path / "run" / "checkpoints").load(12), a_checkpoint(12))
    path = tmp_path / "run" / "checkpoints" / "round-000012.h5"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == [path.name]
    with h5py.File(path) as file:
        assert list(file["tensors"]) == [f"{i:06d}" for i in range(5)]
        assert file["tensors/000000"].chunks is None
        assert file["tensors/000000"].compression is None


def test_loaded_arrays_may_be_changed(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint())
    store.load(1).tensors["layer.0/weight"] += 1
    assert same(store.load(1), a_checkpoint())


def test_nothing_but_round_zero(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    empty = Checkpoint(round_=0, sums=0, config=bytes(32), tensors={})
    store.save(empty)
    assert same(store.load(0), empty)
    assert store.rounds() == [0]


def test_the_newest_are_kept(tmp_path):
    store = Hdf5Checkpoints(tmp_path, keep=3)
    for round_ in range(1, 7):
        store.save(a_checkpoint(round_))
    assert store.rounds() == [4, 5, 6]
    with pytest.raises(ValueError, match="two"):
        Hdf5Checkpoints(tmp_path, keep=1)


def test_a_damaged_file_does_not_count_among_those_kept(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint(1))
    store.save(a_checkpoint(2))
    flip(store.path(2), -1)
    os.truncate(store.path(2), 500)
    store.save(a_checkpoint(3))
    assert store.rounds() == [1, 3]
    store.save(a_checkpoint(4))
    assert store.rounds() == [3, 4]
    assert sorted(os.listdir(tmp_path)) == ["round-000003.h5", "round-000004.h5"]


def test_saving_an_older_round_never_removes_it(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    for round_ in (7, 8, 3):
        store.save(a_checkpoint(round_))
    assert store.rounds() == [3, 7, 8]
    store.discard_after(3)
    assert store.rounds() == [3]
    assert os.listdir(tmp_path) == ["round-000003.h5"]


def test_the_same_round_is_replaced(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint(1))
    other = dataclasses.replace(a_checkpoint(1), sums=99)
    store.save(other)
    assert store.load(1).sums == 99
    assert Hdf5Checkpoints(tmp_path).rounds() == [1]


def test_the_best_stays_however_many_come(tmp_path):
    store, best = Hdf5Checkpoints(tmp_path), Hdf5Checkpoints(tmp_path / "best")
    for round_ in range(1, 4):
        store.save(a_checkpoint(round_))
        if round_ != 3:
            store.keep_apart(round_)
    store.save(a_checkpoint(4))
    assert (store.rounds(), best.rounds()) == ([3, 4], [2])
    assert same(best.load(2), a_checkpoint(2))
    assert best.path(2).stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "best") == ["round-000002.h5"]
    store.keep_apart(9)  # there is none
    store.keep_apart(4)
    store.keep_apart(4)
    assert best.rounds() == [4]
    store.discard_after(3)  # it is to be repeated
    assert (store.rounds(), best.rounds()) == ([3], [])


def test_what_was_the_best_round_is_kept(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    kept = dataclasses.replace(a_checkpoint(1), best={"value": 0.1 + 0.2, "round": 1.0, "waited": 3.0})
    store.save(kept)
    assert store.load(1).best == Hdf5Checkpoints(tmp_path).load(1).best == kept.best


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)


def test_one_flipped_bit_anywhere_is_found_or_harmless(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint())
    whole = store.path(1).read_bytes()
    found = 0
    for position in range(0, len(whole), 11):
        store.path(1).write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            assert same(store.load(1), a_checkpoint())
        except DataError:
            found += 1
    assert found > 50


def test_every_bit_of_a_tensor_counts(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint(1))
    store.save(a_checkpoint(2))
    content = store.path(2).read_bytes()
    at = content.index(a_checkpoint(2).tensors["layer.0/weight"].tobytes())
    flip(store.path(2), at + 5)
    with pytest.raises(DataError, match="does not have its SHA-256") as caught:
        store.load(2)
    assert caught.value.hint
    assert store.rounds() == [1]  # also by the process that wrote it
    assert Hdf5Checkpoints(tmp_path).rounds() == [1]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_skipped(tmp_path, keep):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint(1))
    store.save(a_checkpoint(2))
    os.truncate(store.path(2), int(store.path(2).stat().st_size * keep))
    assert store.rounds() == [1]
    with pytest.raises(DataError):
        store.load(2)
    with pytest.raises(DataError, match="does not exist"):
        store.load(9)


def test_a_renamed_file_is_not_taken_for_another_round(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint(1))
    store.path(1).rename(store.path(5))
    assert store.rounds() == []
    with pytest.raises(DataError, match="holds round 1"):
        store.load(5)


CRAFTED = {
    "version 3": lambda f: f.attrs.__setitem__("schema_version", 3),
    "does not have its SHA-256": lambda f: f.attrs.__setitem__("schema_version", 1),  # would lose the blind
    "claims": lambda f: (
        f.__delitem__("tensors/000000"),
        f.create_dataset("tensors/000000", (10**12,), "f4", chunks=(1000,)),
    ),
    "link to elsewhere": lambda f: (
        f.__delitem__("tensors"),
        f.__setitem__("tensors", h5py.ExternalLink("/tmp/other.h5", "/tensors")),
    ),
    "has dtype object": lambda f: (
        f.__delitem__("tensors/000000"),
        f.create_dataset("tensors/000000", data=["text"]),
    ),
    "'index' is missing": lambda f: f.__delitem__("index"),
    "damaged": lambda f: f["index"].__setitem__(0, ord("[")),
    "has the wrong type": lambda f: f.attrs.__setitem__("sha256", "0" * 64),
}


@pytest.mark.parametrize("message", CRAFTED)
def test_crafted_files_are_refused_before_anything_is_allocated(tmp_path, message):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint())
    with h5py.File(store.path(1), "r+") as file:
        CRAFTED[message](file)
    with pytest.raises(DataError, match=message):
        store.load(1)


def test_one_of_the_version_before_is_read_and_has_no_blind(tmp_path):
    """Its model may still be exported; the main loop refuses to go on from it."""
    from harness import without_blind  # not where a process of its own imports this file

    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint())
    without_blind(store.path(1))
    old = Hdf5Checkpoints(tmp_path)
    assert old.rounds() == [1]
    loaded = old.load(1)
    assert (loaded.blind, loaded.signed) == (b"", ())
    now = a_checkpoint()
    assert same(dataclasses.replace(loaded, blind=now.blind, exchange=now.exchange, signed=now.signed), now)
    with pytest.raises(PolicyError, match=r"0\.1\.0") as refused:
        _refuse_without_blind(loaded)
    assert "fedhpc site ledger adopt" in refused.value.hint
    assert "fedhpc federation next --from-model" in refused.value.hint
    _refuse_without_blind(a_checkpoint())


def test_arrays_of_objects_are_refused_at_once(tmp_path):
    store = Hdf5Checkpoints(tmp_path)
    for bad in (np.array(["a"]), np.array([object()])):
        with pytest.raises(InternalError, match="private 'x' has dtype"):
            store.save(Checkpoint(1, 1, bytes(32), {}, private={"x": bad}))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_when_the_disk_fails_the_previous_checkpoint_is_intact(tmp_path, monkeypatch, call):
    store = Hdf5Checkpoints(tmp_path)
    store.save(a_checkpoint(1))
    store.save(a_checkpoint(2))

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match="No space left") as caught:
            store.save(a_checkpoint(3))
    assert "free space" in caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["round-000001.h5", "round-000002.h5"]
    assert same(store.load(2), a_checkpoint(2))
    store.save(a_checkpoint(3))
    assert store.rounds() == [2, 3]


HERE = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_checkpoint import *\n"


def in_a_process(program):
    return subprocess.run([sys.executable, "-c", HERE + program], capture_output=True, text=True, timeout=120)


def test_a_full_disk_in_the_middle_of_a_tensor(tmp_path):
    done = in_a_process(f"""
import resource
store = Hdf5Checkpoints(Path({str(tmp_path)!r}))
store.save(a_checkpoint(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    store.save(a_checkpoint(2, size=100_000))
except StorageError as error:
    print(error.lines(), store.rounds())
store.save(a_checkpoint(3))
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert "File too large" in done.stdout
    assert done.stdout.endswith("[1]\n")
    assert sorted(os.listdir(tmp_path)) == ["round-000001.h5", "round-000003.h5"]
    assert Hdf5Checkpoints(tmp_path).rounds() == [1, 3]


def test_a_kill_between_write_and_rename_costs_only_the_new_checkpoint(tmp_path):
    done = in_a_process(f"""
store = Hdf5Checkpoints(Path({str(tmp_path)!r}))
store.save(a_checkpoint(1))
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
store.save(a_checkpoint(2))
""")
    assert done.returncode == -signal.SIGKILL
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 2
    assert left[0].startswith(".round-000002.h5.")
    store = Hdf5Checkpoints(tmp_path)
    assert os.listdir(tmp_path) == ["round-000001.h5"]
    assert same(store.load(1), a_checkpoint(1))


def test_a_reader_does_not_disturb_a_writer(tmp_path):
    """Opening the directory while another process is writing must not remove its temporary file."""
    done = in_a_process(f"""
directory = Path({str(tmp_path)!r})
store = Hdf5Checkpoints(directory)
replace = os.replace
def look_first(*names):
    code = "import sys; from pathlib import Path; from fedhpc.train.checkpoint_files import Hdf5Checkpoints as H;"
    code += "print(H(Path(sys.argv[1])).rounds())"
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True)
    replace(*names)
os.replace = look_first
store.save(a_checkpoint(1))
print(store.rounds())
""")
    assert (done.returncode, done.stdout.split("\n")[:2], done.stderr) == (0, ["[]", "[1]"], "")


def test_an_unreadable_directory_is_not_taken_for_an_empty_one(tmp_path):
    store = Hdf5Checkpoints(tmp_path / "c")
    (tmp_path / "c").rmdir()
    with pytest.raises(StorageError, match="cannot list"):
        store.rounds()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make"):
        Hdf5Checkpoints(tmp_path / "file")
