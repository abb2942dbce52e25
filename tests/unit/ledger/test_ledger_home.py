"""The home of an institution's ledger: one key, one file, several runs at once, and what goes wrong with folders."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from federation_fakes import journal_in, known
from secure_fakes import key_of

from fedhpc.agreement.site_file import read_site
from fedhpc.errors import ConfigError, FedhpcError, PolicyError, StorageError
from fedhpc.ledger.file import LedgerFile
from fedhpc.ledger.home import KEY_FILE, LedgerHome, home_of
from fedhpc.secure.ledger import LedgerEntry, ledger_keys

ROOT = Path(__file__).parents[3]


def entry(round_: int, purpose: str = "train") -> LedgerEntry:
    return LedgerEntry(round_, purpose, key_of("i", round_, purpose), key_of("f", round_), (1, 2, 3))


def test_two_federations_at_once_in_one_home(tmp_path: Path) -> None:
    """Each gain takes in what the other has added; a second run of the same configuration is refused."""
    first, second = journal_in(tmp_path, known("first")), journal_in(tmp_path, known("second"))
    for round_ in range(1, 4):
        first.admit(entry(round_))
        second.admit(entry(round_))
    assert (len(first.ledger), len(second.ledger)) == (3, 3)
    assert len(first.home.of(known("second").config)) == 2, "as of its last look"
    for journal in (first, second):
        journal.close()
    found = LedgerHome(tmp_path).look()
    assert [e.round_ for e in found.entries()] == [1, 2, 3, 1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [next(iter(line.keys() - {"head"})) for line in lines] == ["federation"] * 2 + ["entry"] * 6


def test_many_processes_write_one_chain(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from test_ledger_home import entry, journal_in, known
journal = journal_in(Path({str(tmp_path)!r}), known(sys.argv[1]))
for round_ in range(1, 21):
    journal.admit(entry(round_))
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{ROOT / 'tests' / 'fakes'}"}
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(n)], env=environment, stderr=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    found = LedgerHome(tmp_path).look()  # checks the chain
    assert len(found.federations) == 4
    assert len(found.entries()) == 80


def test_a_line_that_another_run_could_not_end_is_cut(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.admit(entry(1))
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"entry":{"coh')  # killed inside its write, which nothing was sent after
    journal.admit(entry(2))
    assert path.read_bytes().startswith(whole)
    assert [e.round_ for e in LedgerHome(tmp_path).look().entries()] == [1, 2]


@pytest.mark.parametrize("how", ["removed", "replaced", "cut", "folder"])
def test_a_ledger_that_changes_under_a_run(tmp_path: Path, how: str) -> None:
    home = tmp_path / "home"
    journal = journal_in(home)
    journal.admit(entry(1))
    path = home / "ledger.jsonl"
    data = path.read_bytes()
    if how == "folder":
        home.rename(tmp_path / "elsewhere")
    elif how == "cut":
        os.truncate(path, 10)
    else:
        path.unlink()
        if how == "replaced":
            path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(FedhpcError) as caught:
            journal.admit(entry(2))
        assert caught.value.exit_code in (74, 77)
    assert len(journal.ledger) == 1


def test_the_key_is_made_once_and_belongs_to_its_ledger(tmp_path: Path) -> None:
    home = LedgerHome(tmp_path / "home")
    key = home.key()
    assert len(key) == 32
    assert home.key() == key
    path = home.folder / "ledger.key"
    assert path.stat().st_mode & 0o777 == 0o600
    journal_in(home.folder).admit(entry(1))
    kept = path.read_bytes()
    for spoilt in (b"", kept[:-1], kept + b"\n"):
        path.write_bytes(spoilt)
        with pytest.raises(PolicyError, match="missing or damaged"):
            home.key()
    path.unlink()
    with pytest.raises(PolicyError, match="missing or damaged"):
        home.key()
    assert not path.exists(), "a new key would know none of the old numbers"
    path.write_bytes(kept)
    path.chmod(0o640)
    with pytest.raises(StorageError, match="can be read by others"):
        home.key()
    path.chmod(0o600)
    assert home.key() == kept


def test_the_name_of_a_new_key_is_on_disk_before_anything_is_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that a power cut unlinks would leave a ledger that nobody can use any more."""
    synced: list[tuple[Path, bool]] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append((Path(os.readlink(f"/proc/self/fd/{handle}")), (tmp_path / KEY_FILE).exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    LedgerHome(tmp_path).key()
    assert (tmp_path, True) in synced


def test_a_key_whose_writer_was_killed_before_anything_was_summed(tmp_path: Path) -> None:
    home = LedgerHome(tmp_path)
    home.key()
    (tmp_path / "ledger.key").write_bytes(b"half")
    assert len(home.key()) == 32


def test_a_ledger_that_is_missing_beside_its_key(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.admit(entry(1))
    journal.close()
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(PolicyError, match="is missing, and its key is there") as caught:
        journal_in(tmp_path)
    assert caught.value.exit_code == 77
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="cannot be locked") as caught:
        journal_in(tmp_path)
    assert (caught.value.exit_code, "[ledger] path" in caught.value.hint) == (74, True)
    with pytest.raises(StorageError, match="cannot be locked"):
        LedgerFile(tmp_path / "ledger.jsonl")


def test_where_a_home_lies(tmp_path: Path) -> None:
    site = b"[site]\nname = 'leiden'\n"
    path = tmp_path / "sites" / "leiden.toml"
    data, own = {"XDG_DATA_HOME": "/data"}, b"[ledger]\npath = '../ledger'\n"
    assert home_of(read_site(site, path), data).folder == Path("/data/fedhpc/ledger/leiden")
    assert home_of(read_site(site, path), {}).folder == Path.home() / ".local/share/fedhpc/ledger/leiden"
    assert home_of(read_site(site, path), {"XDG_DATA_HOME": "relative"}).folder.is_absolute()
    assert home_of(read_site(site + own, path), data).folder == tmp_path / "sites" / ".." / "ledger"
    with pytest.raises(ConfigError, match="unknown key 'home'"):
        read_site(site + b"[ledger]\nhome = 'x'\n", path)


def test_it_remembers_where_each_configuration_runs(tmp_path: Path) -> None:
    home = LedgerHome(tmp_path)
    assert home.run_of(known().config) is None
    journal = journal_in(tmp_path)
    assert home.run_of(known().config) == tmp_path / "run"
    with pytest.raises(StorageError, match="another run is using"):
        home.begin_run(known().config, "s1", tmp_path / "other", 0.0)
    assert home.run_of(known().config) == tmp_path / "run", "who is refused changes nothing"
    journal.close()
    home.begin_run(known().config, "s1", tmp_path / "other", 0.0).close()
    assert home.run_of(known().config) == tmp_path / "other"
    assert home.running() == {known().config.hex(): str(tmp_path / "other")}


def test_two_sites_of_a_federation_need_two_homes(tmp_path: Path) -> None:
    journal_in(tmp_path)
    with pytest.raises(ConfigError, match="is site s1's in this federation, not s2's"):
        journal_in(tmp_path, dataclasses.replace(known(), number=2))


def test_looking_makes_nothing(tmp_path: Path) -> None:
    home = LedgerHome(tmp_path / "none")
    assert home.look().entries() == []
    assert not home.folder.exists()


def test_keys_of_fingerprints_follow_from_the_home_alone() -> None:
    """So a value is known again in another federation, and after a site has changed the key that it signs with."""
    here, there = ledger_keys(key_of("a"), key_of("home"), 1), ledger_keys(key_of("b"), key_of("home"), 2)
    assert (here.blocks, here.value) == (there.blocks, there.value)
    assert len({here.blocks, here.value, here.whole, there.whole}) == 4
    other = ledger_keys(key_of("a"), key_of("other home"), 1)
    assert not {here.blocks, here.value, here.whole} & {other.blocks, other.value, other.whole}
    assert "blocks" not in repr(here)
