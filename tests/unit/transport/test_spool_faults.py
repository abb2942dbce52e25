"""Disks without room, two carriers, foreign files: what both ends of a spool directory do then."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from spool_fakes import CONFIG, VECTOR, FakeClient, FakeRelay, carrying, halves, name, once, spool_in, wait_for

from fedhpc.agreement.site_file import read_site
from fedhpc.app.carry import status_of
from fedhpc.errors import ConfigError, PeersError, StorageError
from fedhpc.secure.suite import SHA256
from fedhpc.transport.link_problems import NoWayError, RelayProblem
from fedhpc.transport.spool.carrier import Carrier
from fedhpc.transport.spool.carrier_lease import Lease
from fedhpc.transport.spool.client import SpoolClient
from fedhpc.transport.spool.folder import PUTS, SpoolFolder, names_in, read_note_name, write_file
from fedhpc.transport.spool.notes import CarrierLife, PutNote, to_bytes


@pytest.fixture
def relay() -> FakeRelay:
    return FakeRelay()


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    return spool_in(tmp_path)


@contextmanager
def full_disk(half: Path) -> Iterator[None]:
    """No byte can be written below `half`: what is opened there for writing says so, as a full disk does."""
    really, really_at = os.fsync, os.pwrite

    def below(handle: int) -> bool:
        return os.readlink(f"/proc/self/fd/{handle}").startswith(str(half))

    def fsync(handle: int) -> None:
        if below(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(handle)

    def pwrite(handle: int, data: memoryview, at: int) -> int:
        if below(handle) and at >= 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_at(handle, data, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "pwrite", pwrite)
        yield


# --- disks


def test_a_full_disk_at_the_site(folder: SpoolFolder, relay: FakeRelay) -> None:
    client = SpoolClient(folder, patience_s=20)
    with full_disk(folder.out):
        with pytest.raises(StorageError) as error:
            client.put(name("M1/2"), b"keys")
        assert error.value.exit_code == 74
        assert "No space left" in error.value.what
        assert "make room" in error.value.hint
        with pytest.raises(StorageError):
            halves(client)
    assert names_in(folder.out / "1" / "1") == names_in(folder.out / PUTS) == [], "nothing half-written has a name"
    assert once(folder, relay) == 0
    again = SpoolClient(folder, patience_s=20)
    with carrying(folder, relay):
        again.put(name("M1/2"), b"keys")
        _, root = halves(again)
        again.upload(name("M3v/2"), len(VECTOR)).commit(root)
    assert relay.objects == {name("M1/2"): b"keys", name("M3v/2"): VECTOR}


def test_a_full_disk_at_the_carrier_that_watches(folder: SpoolFolder, relay: FakeRelay) -> None:
    """It says so, tries again, and goes on when there is room; the site waits and is told nothing false."""
    relay.add(name("Y"), VECTOR)
    said: list[str] = []
    carrier = Carrier(folder, FakeClient(relay), said.append)  # type: ignore[arg-type]
    thread = threading.Thread(target=carrier.watch)
    client = SpoolClient(folder, patience_s=60)
    view = bytearray(len(VECTOR))
    waiting = threading.Thread(target=client.fetch_part, args=(name("Y"), len(VECTOR), 0, memoryview(view)))
    thread.start()
    try:
        wait_for(folder.carrier.exists)
        with full_disk(folder.in_):
            waiting.start()
            wait_for(lambda: any("No space left" in words for words in said))
            assert not folder.come(name("Y")).exists()
            assert names_in(folder.in_ / "answers") == []
        waiting.join(30)
        assert bytes(view) == VECTOR
    finally:
        carrier.stopping.set()
        thread.join(20)
    assert any("make room" in words for words in said)


def test_a_full_disk_in_one_pass(folder: SpoolFolder, relay: FakeRelay) -> None:
    client = SpoolClient(folder, patience_s=0.1)
    with pytest.raises(PeersError):
        client.put(name("M1/2"), b"keys")
    with full_disk(folder.in_), pytest.raises(StorageError, match="No space left"):
        once(folder, relay)
    assert once(folder, relay) == 1


# --- two carriers


def lease(folder: SpoolFolder) -> Lease:
    return Lease(folder, lambda: 0)


def taken(folder: SpoolFolder, stale_s: float = 0.3) -> Lease:
    found = lease(folder)
    found.take(lambda text: None, threading.Event(), stale_s)
    return found


def other_host(folder: SpoolFolder, **changes: object) -> None:
    """A carrier on another host wrote its sign of life."""
    life = CarrierLife("ee" * 8, "transfer9", os.getpid(), "another boot", 3, 0, "2026-01-01T00:00:00Z", "")
    write_file(folder.carrier, to_bytes(life.__class__(**{**life.__dict__, **changes})))


def test_a_carrier_on_another_host_that_lives(folder: SpoolFolder) -> None:
    other_host(folder)
    stopping = threading.Event()
    second = lease(folder)

    def say(text: str) -> None:
        assert "transfer9" in text
        other_host(folder, beats=4)  # while the second one looks

    # The first look was before `say`, so the change is seen.
    with pytest.raises(PeersError, match=r"carried already, on transfer9 by process [0-9]+, last sign of life 2026"):
        second.take(say, stopping, 20)


def test_a_carrier_that_ended_or_died_makes_room(folder: SpoolFolder) -> None:
    other_host(folder, ended=True)
    taken(folder, stale_s=1e6)
    mine = json.loads(folder.carrier.read_bytes())
    dead = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1  # no process of a test's machine
    other_host(folder, place=mine["place"], pid=dead)
    taken(folder, stale_s=1e6)
    other_host(folder)
    taken(folder, stale_s=0.3)  # shows nothing new for long enough
    assert json.loads(folder.carrier.read_bytes())["pid"] == os.getpid()


def test_the_one_that_was_replaced_ends(folder: SpoolFolder) -> None:
    """Both began at once, or the first was stopped for a while: the one that wrote last stays."""
    first = taken(folder)
    second = taken(folder)
    with pytest.raises(PeersError, match="now carried by another carrier"):
        first.beat("")
    first.end()
    second.beat("")
    assert json.loads(folder.carrier.read_bytes())["ended"] is False
    second.end()
    second.beat("late")
    assert json.loads(folder.carrier.read_bytes())["ended"] is True


def test_a_carrier_that_is_replaced_stops(folder: SpoolFolder, relay: FakeRelay) -> None:
    carrier = Carrier(folder, FakeClient(relay), lambda text: None)  # type: ignore[arg-type]
    failed: list[BaseException] = []

    def run() -> None:
        try:
            carrier.watch()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(folder.carrier.exists)
    other_host(folder)
    thread.join(30)
    assert not thread.is_alive()
    assert isinstance(failed[0], PeersError)
    assert json.loads(folder.carrier.read_bytes())["host"] == "transfer9"


# --- files that do not belong there


def test_strange_files_are_passed_over(folder: SpoolFolder, relay: FakeRelay, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"keys")
    for kind in ("puts", "want", "watch"):
        for text in ("x", "1", "1.1.M1", "1.1.../../secret", "99999999999999999999.1.M1.2", "1.1.M1.2.3.4", "é.1.M1.2"):
            if "/" not in text:
                write_file(folder.out / kind / text, b"{}")
    note = to_bytes(PutNote("ab" * 8, 4, SHA256.tree(b"keys").hex()))
    write_file(folder.note(PUTS, "1.1.M1.2"), note)
    folder.sent(name("M1/2")).parent.mkdir(parents=True)
    folder.sent(name("M1/2")).symlink_to(secret)
    carrier = Carrier(folder, FakeClient(relay), lambda text: None)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=r"(?s)cannot read .*M1\.2: "):
        carrier.once(0.1)
    assert relay.sent == [], "a link is not followed out of the spool"
    folder.sent(name("M1/2")).unlink()
    os.mkfifo(folder.sent(name("M1/2")))
    with pytest.raises(StorageError, match="not a regular file"):
        once(folder, relay)


def test_names_that_would_lead_elsewhere_are_refused() -> None:
    for text in ("1.1.M1/../../x", "1.1.", "..", "1.1.m1", "01.1.M1", "1.1.M1.0", "-1.1.M1", "1.1.M1\n"):
        with pytest.raises(ValueError, match=r"called|object|round"):
            read_note_name(text, CONFIG)


def test_a_sum_larger_than_this_site_s_vector_does_not_come_unasked(folder: SpoolFolder, relay: FakeRelay) -> None:
    """A relay cannot fill the carrier's disk by what nobody asked for."""
    client = SpoolClient(folder, patience_s=20)
    with carrying(folder, relay):
        _, root = halves(client)
        client.upload(name("M3v/2"), len(VECTOR)).commit(root)
        relay.add(name("Y"), VECTOR + b"1")
        relay.add(name("U1"), b"[1]")
        client.listing(CONFIG, 1, 1, "", 20.0, ("U1", 1))
    assert not folder.come(name("Y")).exists()
    with carrying(folder, relay), pytest.raises(RelayProblem, match="bad-length"):
        client.fetch_part(name("Y"), len(VECTOR), 0, memoryview(bytearray(len(VECTOR))))


# --- what people see


def test_status_tells_what_waits(folder: SpoolFolder, relay: FakeRelay) -> None:
    found = status_of(folder)
    assert (found.waiting, found.wanted, found.watched, found.carrier, found.site) == ((), (), (), None, None)
    client = SpoolClient(folder, patience_s=0.1)
    client.listing(CONFIG, 3, 1, "", 0.0)
    with pytest.raises(PeersError):
        client.put(name("M1/2", 3), b"keys")
    found = status_of(folder)
    assert found.waiting == ("3/1/M1/2",)
    assert found.watched == ("3/1",)
    once(folder, relay)
    found = status_of(folder)
    assert found.waiting == ()
    assert found.carrier is not None
    assert found.carrier.ended


def test_the_site_file(tmp_path: Path) -> None:
    head = b'[site]\nname = "a"\n[exchange]\nkind = "spool"\n'
    path = tmp_path / "site.toml"
    site = read_site(head + b'spool = "the spool"\n', path)
    assert site.path(site.exchange.spool or Path()) == tmp_path / "the spool"
    assert site.exchange.url == ""
    with pytest.raises(ConfigError, match="needs spool"):
        read_site(head, path)


# --- a wrong address


def test_one_pass_ends_with_its_trouble_and_does_not_tell_it_before(folder: SpoolFolder, relay: FakeRelay) -> None:
    said: list[str] = []
    with pytest.raises(PeersError, match="no carrier has been seen"):
        SpoolClient(folder, patience_s=0.1).put(name("M1/2"), b"keys")
    relay.down = True
    with pytest.raises(PeersError, match="cannot be reached"):
        Carrier(folder, FakeClient(relay), said.append).once(stale_s=0.5)  # type: ignore[arg-type]
    assert said == []
    relay.down = False
    assert once(folder, relay) == 1


@pytest.mark.parametrize("met", [False, True])
def test_a_wrong_address_ends_a_carrier_that_never_reached_the_relay(
    folder: SpoolFolder, relay: FakeRelay, met: bool
) -> None:
    """Later it is a trouble like others: a proxy may be set up anew in the middle of days."""
    said: list[str] = []

    class Client(FakeClient):
        def get_json(self, path: str) -> dict[str, object]:
            raise NoWayError("the proxy refused", "ask its operators")

    client = Client(relay)
    client.met = met  # type: ignore[attr-defined]
    carrier = Carrier(folder, client, said.append)  # type: ignore[arg-type]
    failed: list[BaseException] = []

    def run() -> None:
        try:
            carrier.watch()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: said if met else not thread.is_alive())
    finally:
        carrier.stop()
        thread.join(60)
    if met:
        assert said == ["the proxy refused (ask its operators)"]
        assert failed == []
    else:
        assert isinstance(failed[0], NoWayError)
        assert failed[0].exit_code == 69
