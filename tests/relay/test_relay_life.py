"""The relay's life: killed, restarted, full, stopped, watched, bounded."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from relay_process import CONFIG, MIB, PATIENCE, ROOT, SITES, Relay, name, noise, root, until

from fedhpc.errors import PeersError, StorageError
from fedhpc.relay.store.object_store import Store
from fedhpc.relay.store.upload import read_records
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience
from fedhpc.transport.link_problems import RelayProblem


def test_a_killed_relay_goes_on_in_the_middle_of_an_upload(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    data = noise(96 * MIB)
    what = name("M3v/1")
    relay.client(2).put(name("M1/2"), b"kept")
    client = RelayClient(relay.world.access(relay.port), 2, Patience(30.0, 0.05, 0.2), piece_bytes=16 * MIB)
    sent: list[bytes] = []
    thread = threading.Thread(target=lambda: sent.append(client.put(what, data)))
    thread.start()
    meta = relay.folder / "store" / CONFIG / "1" / "0" / "M3v.1.meta"
    until(lambda: meta.exists() and len(list(read_records(meta, len(data)))) > 20)
    relay.stop(signal.SIGKILL)
    there = len(list(read_records(meta, len(data))))
    assert 20 < there < 96, "killed too late to show anything"
    relay.start()
    thread.join(60)
    assert sent[0].hex() == root(data)
    assert relay.client(1).get(what, most_bytes=128 * MIB) == data
    assert relay.client(3).get(name("M1/2")) == b"kept"
    assert relay.received_bytes() <= (96 - there) * MIB + 4 * MIB  # what was there was not sent again


def test_a_killed_site_goes_on_in_the_middle_of_an_upload(relay: Relay) -> None:
    program = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from relay_process import *
from fedhpc.transport.https.client import *
from fedhpc.transport.https.link import *
from pathlib import Path
access = RelayAccess("https://127.0.0.1:{relay.port}", bytes.fromhex("{relay.world.relay.pin().hex()}"),
    Path({str(relay.world.folder)!r}) / "site1.pem", Path({str(relay.world.folder)!r}) / "site1.key")
data = noise(64 * MIB)
upload = RelayClient(access, 2).upload(name("M3v/1", round_=40), len(data))
for at in range(0, 64, 4):
    upload.write(at * MIB, memoryview(data)[at * MIB : (at + 4) * MIB])
    print(at, flush=True)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    site = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=env)
    assert site.stdout is not None
    for line in site.stdout:
        if line == "8\n":
            site.kill()
            break
    site.wait()
    site.stdout.close()
    what, data = name("M3v/1", round_=40), noise(64 * MIB)
    found = relay.client(1).missing(what)
    assert found is not None
    assert found[0] == 64 * MIB
    left = sum(b - a for a, b in found[1])
    assert 0 < left <= 52 * MIB
    assert relay.client(1).put(what, data).hex() == root(data)
    assert relay.client(1).get(what, most_bytes=128 * MIB) == data


def test_sigterm_drains(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    data = noise(4 * MIB)
    what = name("V/1")
    upload = relay.client(1).upload(what, len(data))
    upload.write(0, memoryview(data)[: 2 * MIB])
    ended: list[str] = []

    def poll() -> None:
        try:
            relay.client(2).get(name("V/3"), 30.0)
        except PeersError as error:
            ended.append(error.what)

    waiting = threading.Thread(target=poll)
    waiting.start()
    with relay.raw() as sock:
        head = f"PUT /v1/objects/{what} HTTP/1.1\r\nhost: r\r\ncontent-length: {2 * MIB}\r\n"
        sock.sendall(head.encode() + f"content-range: bytes {2 * MIB}-{4 * MIB - 1}/{4 * MIB}\r\n\r\n".encode())
        sock.sendall(data[2 * MIB : 3 * MIB])
        time.sleep(0.5)
        assert relay.process is not None
        relay.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset
            relay.raw().__enter__()
        sock.sendall(data[3 * MIB :])  # the request that runs may end
        assert b" 202 " in sock.recv(1000)
    assert relay.process.wait(20 * PATIENCE) == 0
    waiting.join(20 * PATIENCE)
    assert len(ended) == 1
    assert "cannot be reached" in ended[0]
    relay.start()
    assert relay.client(1).missing(what) == (4 * MIB, [])
    relay.client(1).put(what, data)
    assert relay.client(2).get(what) == data


def _deafen() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])


def test_it_hears_signals_whatever_started_it(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay(before=_deafen, any_name=False)
    assert relay.stop(signal.SIGTERM) == 0


def test_a_full_disk_is_a_clean_507(new_relay: Callable[..., Relay]) -> None:
    # A file-size limit is met by the kernel at the same place as a full disk (EFBIG instead of ENOSPC).
    relay = new_relay(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, 3 * MIB)))
    with pytest.raises(RelayProblem, match="507 disk-full"):
        relay.client(1).put(name("V/1"), noise(6 * MIB))
    assert relay.client(2).get(name("V/1")) is None
    relay.client(1).put(name("V/1/2"), noise(2 * MIB))
    assert relay.client(2).get(name("V/1/2")) == noise(2 * MIB)
    tight = new_relay(extra=f"reserve_bytes = {1 << 60}")
    with pytest.raises(RelayProblem, match=r"507 disk-full.*no space"):
        tight.client(1).put(name("V/1"), b"x")
    assert not list((tight.folder / "store").glob("*/*/*/*"))


def test_a_broken_disk_is_a_500_and_the_relay_goes_on(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    relay.client(1).put(name("V/1"), b"x")
    (relay.folder / "store" / CONFIG / "1").rename(relay.folder / "store" / CONFIG / "gone")
    (relay.folder / "store" / CONFIG / "1").write_bytes(b"a file where a folder should be")
    status, text = relay.ask(f"PUT /v1/objects/{name('W/1')} HTTP/1.1\nhost: r\ncontent-length: 1", b"x")
    assert (status, "see the relay's log" in text) == (500, True)
    assert str(relay.folder) not in text
    assert relay.ask(f"GET /v1/objects/{name('V/1')} HTTP/1.1\nhost: r")[0] == 500
    relay.client(1).put(name("V/1", round_=2), b"x")
    assert relay.client(2).get(name("V/1", round_=2)) == b"x"


def test_one_relay_a_store(relay: Relay) -> None:
    with pytest.raises(StorageError, match="another relay uses"):
        Store(relay.folder / "store")


def test_the_admin_port(relay: Relay) -> None:
    relay.client(1).put(name("M1/1", round_=41), b"x" * 5000)
    text = relay.metrics()
    for words in (
        '# TYPE fedhpc_relay_requests_total counter\nfedhpc_relay_requests_total{method="',
        f'fedhpc_relay_stored_bytes{{federation="{CONFIG[:16]}",owner="1"}} ',
        "fedhpc_relay_resident_memory_bytes ",
    ):
        assert words in text
    address = f"http://127.0.0.1:{relay.admin}"
    assert urllib.request.urlopen(f"{address}/healthz").read() == b"ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/secret")
    lured = urllib.request.Request(f"{address}/metrics", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(lured)


def test_memory_stays_bounded_while_four_sites_push(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay()
    data = noise(256 * MIB)
    expected = root(data)
    failures: list[BaseException] = []

    def push(site: int) -> None:
        try:
            assert relay.client(site, connections=4).put(name(f"M3v/{site}"), data).hex() == expected
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(site,)) for site in range(1, SITES + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert relay.peak_bytes() < 256 * MIB
    sizes = [(relay.folder / "store" / CONFIG / "1" / "0" / f"M3v.{u}").stat().st_size for u in range(1, SITES + 1)]
    assert sizes == [256 * MIB] * SITES
    print(f"peak {relay.peak_bytes() / MIB:.0f} MiB")
