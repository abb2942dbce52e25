"""A whole federation enrolled on this machine, for demos, benchmarks and tests: all the steps that people take.

DIR/coordinator/   the coordinator's folder, with the relay's in it
DIR/sites/NAME/    one folder per site, as `fedhpc site init` makes it
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedhpc.config import read_bytes
from fedhpc.enrolment.approve import review
from fedhpc.enrolment.coordinator import Coordinator
from fedhpc.enrolment.federation_text import MARK
from fedhpc.enrolment.relay import BYTES, OBJECTS, admit
from fedhpc.enrolment.site import SiteFolder
from fedhpc.errors import PeersError
from fedhpc.files import write_whole
from fedhpc.relay.settings import DISK

_DAYS = 30.0


@dataclass(frozen=True)
class Enrolled:
    """What `enrol` made."""

    folder: Path
    url: str
    port: int
    sites: tuple[str, ...]
    durable: str = DISK  # how the relay keeps vectors

    @property
    def federation(self) -> Path:
        """federation.toml."""
        return self.folder / "coordinator" / "federation.toml"

    @property
    def relay(self) -> Path:
        """relay.toml."""
        return self.folder / "coordinator" / "relay" / "relay.toml"

    def site_file(self, name: str) -> Path:
        """site.toml of a site."""
        return self.folder / "sites" / name / "site.toml"

    def approve(self, federation: Path, *, unmasked: bool = False, quota_bytes: int = BYTES) -> None:
        """Every site signs this federation.toml, and the relay lets it in."""
        for name in self.sites:
            folder = SiteFolder.open(self.site_file(name))
            review(federation, folder).sign(folder)
        admit(federation, self.relay, quota_bytes=quota_bytes, objects=OBJECTS, unmasked=unmasked, durable=self.durable)

    def variant(self, folder: Path, source: bytes, quota_bytes: int = BYTES, *, unmasked: bool = False) -> Enrolled:
        """The same sites, keys and relay with another federation.toml, in files of its own."""
        other = Enrolled(folder, self.url, self.port, self.sites, self.durable)
        for name in self.sites:
            home = self.folder / "sites" / name
            text = read_bytes(home / "site.toml").decode()
            for file in ("sign.key", "tls.pem", "tls.key"):
                text = text.replace(f'"{file}"', f'"{home.absolute() / file}"')
            other.site_file(name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(other.site_file(name), text.encode(), mode=0o600)
        other.federation.parent.mkdir(parents=True, exist_ok=True)
        write_whole(other.federation, source)
        for name in self.sites:
            site = SiteFolder.open(other.site_file(name))
            review(other.federation, site).sign(site)
        admit(
            other.federation,
            self.relay,
            quota_bytes=quota_bytes,
            objects=OBJECTS,
            unmasked=unmasked,
            durable=self.durable,
        )
        return other


def enrol(
    folder: Path,
    name: str,
    sections: str,
    sites: Mapping[str, Path],
    *,
    rounds: int = 1,
    seed: int = 0,
    unmasked: bool = False,
    quota_bytes: int = BYTES,
    durable: str = DISK,
) -> Enrolled:
    """Make keys and certificates, the roster, the signatures, and a relay's folder. `sites`: name -> its data.

    `sections`: what federation.toml says besides [federation], [relay] and the roster. Raises every error of the steps.
    """
    port = _free_port()
    url = f"https://127.0.0.1:{port}"
    coordinator, pin, _ = Coordinator.new(
        folder / "coordinator", name, url, list(sites), rounds=rounds, seed=seed, accept_two_sites=True
    )
    text = read_bytes(coordinator.federation).decode()
    head, roster = text.partition("[cohort]")[0], text.partition(MARK)[2]
    write_whole(coordinator.federation, f"{head}{sections.strip()}\n\n{MARK}{roster}".encode())
    relay = coordinator.relay / "relay.toml"
    text = read_bytes(relay).decode()
    write_whole(relay, text.replace('# admin = "127.0.0.1:9443"', 'admin = "127.0.0.1:0"', 1).encode())
    candidates = []
    for site, data in sites.items():
        data_path = str(data.absolute())
        made = SiteFolder.new(folder / "sites" / site, site, relay=url, relay_pin=pin, data=data_path, ledger="ledger")
        candidates.append(coordinator.candidate(made.request(None)[0], mailed=True))
    coordinator.admit(candidates, _DAYS)
    enrolled = Enrolled(folder, url, port, tuple(sites), durable)
    for site in sites:
        made = SiteFolder.open(enrolled.site_file(site))
        made.take_certificate(read_bytes(coordinator.folder / "certificates" / f"{site}.pem"))
    enrolled.approve(coordinator.federation, unmasked=unmasked, quota_bytes=quota_bytes)
    return enrolled


@contextmanager
def running_relay(relay: Path, log: IO[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run `fedhpc relay serve` as a process that listens until the block ends. Raises PeersError if it fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhpc", "relay", "serve", str(relay)], stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        assert process.stdout is not None
        if "listening" not in process.stdout.readline():
            raise PeersError("the relay did not start", "its message is above")
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
