"""Who may use what lies in a spool: as the directory itself says, whatever the umask; never everybody."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from spool_fakes import CONFIG, VECTOR, FakeRelay, carrying, halves, name, spool_in

from fedhpc.transport.spool import modes as spool_modes
from fedhpc.transport.spool.client import SpoolClient
from fedhpc.transport.spool.folder import write_file
from fedhpc.transport.spool.modes import make_folder
from fedhpc.wire.object_names import BLOCK_BYTES

OWN, GROUP = (0o700, 0o600), (0o2770, 0o660)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.rglob("*"):
        found[str(path.relative_to(folder))] = stat.S_IMODE(path.stat().st_mode)
    return found


def check(folder: Path, wanted: tuple[int, int]) -> None:
    found = modes(folder)
    assert any("/out/" in path for path in found)
    assert any("/in/" in path for path in found)
    for path, mode in found.items():
        assert mode == wanted[(folder / path).is_file()], f"{path}: {mode:o}"


@pytest.mark.parametrize(("spool", "wanted"), [(0o755, OWN), (0o700, OWN), (0o2770, GROUP), (0o770, GROUP)], ids=str)
def test_both_halves_are_as_the_spool_is(tmp_path: Path, umask: int, spool: int, wanted: tuple[int, int]) -> None:
    """Messages, notes, receipts, listings, vectors of two ranks while they grow, and the sum."""
    folder = spool_in(tmp_path)
    folder.spool.chmod(spool)
    relay = FakeRelay()
    with carrying(folder, relay):
        client = SpoolClient(folder, patience_s=30)
        client.put(name("M1/2"), b"keys")
        client, root = halves(client)
        check(folder.spool, wanted)  # the parts of a vector, before it has its name
        client.upload(name("M3v/2"), len(VECTOR)).commit(root)
        relay.add(name("Y"), VECTOR)
        client.listing(CONFIG, 1, 1, "", 10)
        view = memoryview(bytearray(len(VECTOR)))
        assert client.fetch_part(name("Y"), len(VECTOR), 0, view) is not None
        check(folder.spool, wanted)
        client.close()
    assert len(VECTOR) > BLOCK_BYTES


def test_ranks_that_make_a_folder_at_once_give_it_one_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ever finds the group's folder without the group's mode, and makes an own one in it."""
    tmp_path.chmod(0o2770)
    both, real = threading.Barrier(2, timeout=20), spool_modes.Path.rename

    def renamed(path: Path, target: Path) -> Path:
        both.wait()
        return real(path, target)

    monkeypatch.setattr(spool_modes.Path, "rename", renamed)
    threads = [threading.Thread(target=make_folder, args=(tmp_path / "a",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a"]
    assert modes(tmp_path) == {"a": 0o2770}


def test_the_group_is_that_of_the_spool(tmp_path: Path) -> None:
    """Also where the directory is not setgid and the group is not this account's first."""
    group = next((g for g in os.getgroups() if g != os.getegid()), None)
    if os.geteuid() == 0:
        group = 12345
    if group is None:
        pytest.skip("this account is in one group only")
    os.chown(tmp_path, -1, group)
    tmp_path.chmod(0o770)
    write_file(tmp_path / "a" / "b" / "note", b"{}")
    for path in tmp_path.rglob("*"):
        assert path.stat().st_gid == group
