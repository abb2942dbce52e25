"""Sites and relay in network namespaces of their own, behind a firewall that lets sites dial out to the relay only.

Needs network namespaces (root, or user namespaces), iproute2 and nftables; `make test` installs the two as root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import closed_network
import pytest
from relay_process import until
from sum_site import site_environment, sum_federation

PROGRAM = Path(closed_network.__file__)


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    reason = closed_network.why_not()
    if reason:
        pytest.skip(reason)


@contextlib.contextmanager
def network(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The program in its namespaces; killed, with all it started, when the block ends."""
    command = closed_network.in_namespaces([sys.executable, str(PROGRAM), *(str(word) for word in words)])
    env = site_environment() | {"PATH": closed_network.PATH}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def write_folder(folder: Path, scratch: Path) -> int:
    """What `closed_network.py` reads; the relay's port."""
    enrolled = sum_federation(scratch, len(closed_network.SITES))
    url = f"https://{closed_network.address('relay')}:{enrolled.port}"
    for name in enrolled.sites:
        shutil.copytree(enrolled.site_file(name).parent, folder / name)
        site_file = folder / name / "site.toml"
        site_file.write_text(site_file.read_text().replace(f'"{enrolled.url}"', f'"{url}"'))
        assert url in site_file.read_text()
    shutil.copytree(enrolled.relay.parent, folder / "relay")
    relay = folder / "relay" / "relay.toml"
    relay.write_text(relay.read_text().replace('listen = "127.0.0.1:', 'listen = "0.0.0.0:'))
    assert "0.0.0.0" in relay.read_text()
    shutil.copy(enrolled.federation, folder / "federation.toml")
    return enrolled.port


def test_sites_that_can_only_dial_out(tmp_path: Path) -> None:
    port = write_folder(tmp_path / "net", tmp_path / "made")
    with network(tmp_path / "net", port, "3") as process:
        out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    found = json.loads(out)
    others = ["relay to s1", "s2 to s1", "s1 to relay"]
    assert found["open"] == dict.fromkeys([*others, "s1 to the relay's port"], "open"), "the probes can succeed"
    blocked = dict.fromkeys(others, "TimeoutError") | {"s1 to the relay's port": "open"}
    assert found["closed"] == found["closed after"] == blocked
    assert found["refused"] >= len(others)
    assert found["sums"] == [[[6, 6], [12, 12], [18, 18]]] * 3
    assert found["opened"] >= 3, "each site has dialled the relay"
    assert found["refused while summing"] == 0, "nobody tried anything else"
    assert found["looks"] > 0
    assert found["listening"] == 0, "a site has opened a port"


def test_nothing_is_left_of_a_network_whose_program_is_killed(tmp_path: Path) -> None:
    links = {name for _, name in socket.if_nameindex()}
    with network("--hold") as process:
        assert process.stdout is not None
        namespace = process.stdout.readline().strip()
        assert namespace.startswith("net:"), process.stderr.read() if process.stderr else ""
        assert members(namespace), "it is there"
    until(lambda: not members(namespace))
    assert {name for _, name in socket.if_nameindex()} == links, "this machine's own network is as it was"


def members(namespace: str) -> list[str]:
    """The processes in a network namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns" / "net") == namespace:
                found.append(process.name)
    return found
