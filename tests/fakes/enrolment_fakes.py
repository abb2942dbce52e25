"""A coordinator and sites in one folder, for the tests of enrolment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedhpc.enrolment.coordinator import Candidate, Coordinator, Granted
from fedhpc.enrolment.site import SiteFolder
from fedhpc.secure.join_request import split_token

URL = "https://relay.example:8443"
SITES = ("aa", "bb", "cc")


class Enrolment:
    """Three invited sites with keys; nobody is admitted yet."""

    def __init__(self, folder: Path, sites: Sequence[str] = SITES) -> None:
        self.folder = folder
        self.coordinator, self.pin, self.tokens = Coordinator.new(folder / "co", "heart", URL, sites, rounds=5)
        self.sites = {name: self.site(name) for name in sites}

    @property
    def federation(self) -> Path:
        return self.coordinator.federation

    def site(self, name: str, folder: str = "") -> SiteFolder:
        return SiteFolder.new(self.folder / (folder or name), name, relay=URL, relay_pin=self.pin, data="data.h5")

    def request(self, name: str, site: SiteFolder | None = None, *, token: bool = True) -> Path:
        halves = split_token(self.tokens[name]) if token else None
        return (site or self.sites[name]).request(halves)[0]

    def candidate(self, name: str, *, mailed: bool = True, token: bool = True) -> Candidate:
        return self.coordinator.candidate(self.request(name, token=token), mailed=mailed)

    def admit(self, *names: str, days: float = 30.0) -> Granted:
        """Admit `names`, or all, and hand out the certificates."""
        names = names or tuple(self.sites)
        granted = self.coordinator.admit([self.candidate(name) for name in names], days)
        for name in names:
            self.sites[name].take_certificate((self.coordinator.folder / "certificates" / f"{name}.pem").read_bytes())
        return granted

    def edit(self, old: str, new: str) -> None:
        text = self.federation.read_text()
        assert old in text
        self.federation.write_text(text.replace(old, new))
