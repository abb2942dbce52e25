"""A federation made on the spot for a measurement: fresh identities, no files."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.agreement.federation_file import PROTOCOL_NAME, read_agreement
from fedhpc.app.join import cores_of_rank, overlap_over, share_ledger_keys
from fedhpc.federation.cores import Cores
from fedhpc.federation.party import Party
from fedhpc.federation.session import Session
from fedhpc.ledger.home import LedgerHome, known_federation
from fedhpc.ledger.journal import FileJournal, Journal, MemoryJournal
from fedhpc.mpi import world as mpi_world
from fedhpc.mpi.world import Place, World
from fedhpc.secure.keys import identity_public, new_identity
from fedhpc.secure.ledger import ledger_keys
from fedhpc.secure.salt import salt_key
from fedhpc.sums.in_job.exchange import Exchange
from fedhpc.sums.in_job.masked_sum import MpiSums
from fedhpc.sums.in_job.mpi_exchange import MpiExchange
from fedhpc.sums.in_job.no_exchange import NoExchange
from fedhpc.sums.in_job.peers import JobPeers, JobRecovery
from fedhpc.sums.in_job.pipeline import CHUNK_BYTES, Pipeline

_FEDERATION = """\
[federation]
name = "bench"
protocol = "{protocol}"
{more}[secure]
mode = "{mode}"
lane_bits = {lane_bits}
degree = {degree}
accept_two_sites = true
{secure}{roster}"""


@dataclass(frozen=True)
class Stage:
    """This rank in a job whose ranks are dealt to the sites in their order."""

    world: World
    place: Place
    identity: bytes
    publics: list[str]  # of all sites, hex
    cores: Cores  # of this rank

    @property
    def sites(self) -> int:
        """Number of sites."""
        return len(self.publics)

    def party(
        self,
        mode: str,
        *,
        lane_bits: int = 32,
        degree: int = 0,
        home: Path | None = None,
        more: str = "",
        secure: str = 'suite = "blake3"\n',
    ) -> Party:
        """A party of a fresh federation in this mode; the ledger is in memory unless it has a `home`.

        `more`: further keys of [federation], then sections. `secure`: further keys of [secure], lines.
        """
        roster = "\n".join(f'[[site]]\nname = "site{u}"\nsign = "{p}"' for u, p in enumerate(self.publics, 1))
        text = _FEDERATION.format(
            protocol=PROTOCOL_NAME,
            mode=mode,
            lane_bits=lane_bits,
            degree=degree,
            roster=roster,
            more=more,
            secure=secure,
        )
        agreement = read_agreement(text.encode(), "the benchmark's federation.toml")
        leads = self.place.site.rank == 0
        masked = mode == "pairwise" and self.sites > 1
        keys = ledger_keys(agreement.hash, self.identity, self.place.number) if leads else None
        journal: Journal | None = None
        if leads:
            known = known_federation(agreement, self.place.number)
            journal = MemoryJournal() if home is None else FileJournal(LedgerHome(home), known, home)
        shared = share_ledger_keys(self.place.site, keys)
        salts = salt_key(agreement.hash, self.identity, self.place.number) if leads else None
        salts = self.place.site.broadcast_bytes(salts)
        return Party(
            agreement=agreement,
            number=self.place.number,
            site=self.place.site,
            members=agreement.members(),
            identity=Ed25519PrivateKey.from_private_bytes(self.identity) if leads and masked else None,
            ledger_keys=shared if masked else None,
            journal=journal,
            salt_key=salts if masked else None,
            cores=self.cores,
        )

    def session(self, party: Party, *, chunk_bytes: int = CHUNK_BYTES, overlap: str = "off") -> Session:
        """A session that sums over this job's sites. `overlap`: as [exchange] overlap."""
        assert self.place.rails is not None
        exchange: Exchange = NoExchange()
        if self.sites > 1:
            exchange = MpiExchange(party.agreement.names, self.place.leaders, self.place.rails)
        ahead, cores = overlap_over(self.cores, overlap)
        pipeline = Pipeline(exchange, chunk_bytes=chunk_bytes, overlap=ahead, cores=cores)
        attempt = mpi_world.attempt_number(self.world.group)
        sums = MpiSums(party, exchange, pipeline, rails=self.place.rails.counts, attempt=attempt)
        return Session(party, sums, JobPeers(party, exchange, sums), JobRecovery(party, exchange))


def set_stage(ranks: Sequence[int], rails: int | str = "auto", world: World | None = None) -> Stage:
    """Deal the ranks of `world`, absent: of the job, to sites of ranks[s] ranks; make an identity for each site."""
    world = mpi_world.start() if world is None else world
    first = list(itertools.accumulate(ranks, initial=0))  # rank of each site
    number = bisect.bisect_right(first, world.group.rank)
    place = mpi_world.split(world, number, [f"site{u}" for u in range(1, len(ranks) + 1)], rails)
    identity = new_identity()
    publics = [p.hex() for p in world.group.gather_bytes(identity_public(identity))]
    return Stage(world, place, identity, [publics[rank] for rank in first[:-1]], cores_of_rank(world))
