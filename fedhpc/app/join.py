"""Joining a federation: from two files to a `Federation` on every rank of every site."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.agreement.federation_file import Agreement, read_agreement
from fedhpc.agreement.identity import lost_keys_hint, read_identity
from fedhpc.agreement.run_folder import make_run_folder, run_place
from fedhpc.agreement.site_file import SiteFile, number_of_rank, read_site_directory
from fedhpc.app.federation import Federation
from fedhpc.config import read_bytes
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.federation.cores import Cores
from fedhpc.federation.going_on import Reached
from fedhpc.federation.life import Life
from fedhpc.federation.party import Party
from fedhpc.federation.session import Session
from fedhpc.kernel.choice import running
from fedhpc.ledger.file import LEDGER_FILE
from fedhpc.ledger.home import home_of, known_federation
from fedhpc.ledger.journal import FileJournal, Journal
from fedhpc.mpi import world as mpi_world
from fedhpc.mpi.collectives import Group
from fedhpc.mpi.world import Place, World
from fedhpc.rounds.null_objects import Endless
from fedhpc.secure.keys import KEY_BYTES, identity_public
from fedhpc.secure.ledger import LedgerKeys, ledger_keys
from fedhpc.secure.salt import salt_key
from fedhpc.secure.transcript import canon, parse_canon
from fedhpc.sums.in_job.exchange import Exchange
from fedhpc.sums.in_job.masked_sum import MpiSums
from fedhpc.sums.in_job.mpi_exchange import MpiExchange
from fedhpc.sums.in_job.no_exchange import NoExchange
from fedhpc.sums.in_job.peers import JobPeers, JobRecovery
from fedhpc.sums.in_job.pipeline import Pipeline
from fedhpc.sums.unconnected import NeverAway, NoSums, OwnRanks


@dataclass(frozen=True)
class Joined:
    """A session of the federation and the site file of this rank."""

    session: Session
    site_file: SiteFile
    site_directory: Path
    first: bool  # rank 0 of the job
    life: Life = field(default_factory=Endless)
    again: Callable[[Party], Session] | None = None  # for another configuration of these ranks, in one job of all sites


Live = Callable[[Place, SiteFile, Path], Life]
"""(place of this rank, its site file, the site's run directory): how long this process may go on."""


def join(
    federation: str | os.PathLike[str],
    *,
    sites: str | os.PathLike[str] | None = None,
    site: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None,
) -> Federation:
    """Join a federation; every rank of the job calls this once.

    `federation`: federation.toml. `sites`: a directory with one site file per site (the whole federation in this job;
    ranks are dealt by the files' `ranks`), or `site`: this rank's own site file (each site's ranks give theirs, as in
    `mpirun -n 2 python train.py a.toml : -n 2 python train.py b.toml`). `run`: where checkpoints are kept, by default
    `run/` beside federation.toml. Installs the abort hook: an exception on one rank ends the job.

    Raises ConfigError, PolicyError or StorageError; on rank 0 before any rank waits, where that is possible.
    """
    return Federation(join_with_files(Path(federation), sites=_path(sites), site=_path(site), run=_path(run)).session)


def join_with_files(
    federation: Path,
    *,
    sites: Path | None,
    site: Path | None,
    run: Path | None,
    connect: bool = True,
    live: Live = lambda place, mine, directory: Endless(),
    ledger_wait_s: float = 0.0,
) -> Joined:
    """`join`, for callers that also need the site file.

    `connect`: False for a job that exchanges nothing. `live` makes the life of this rank, which also ends the joining.
    `ledger_wait_s`: how long another run of the same configuration is waited for.
    """
    if (sites is None) == (site is None):
        raise ConfigError(
            "give either sites= (a directory) or site= (a file)",
            "`--sites DIR` if all sites are in this job, `--site FILE` for one site of a federation over a relay",
        )
    running()  # a wrong FEDHPC_KERNEL is refused before any rank waits
    world = mpi_world.start()
    again: Callable[[Party], Session] | None = None
    agreement, files = _read_files(world, federation, sites, site)
    if sites is not None:
        number = number_of_rank(world.group.rank, world.group.size, files)
        mine = files[number - 1]
    else:
        mine = files[0]
        number = agreement.number_of(mine.site.name)
    name = agreement.names[number - 1]
    directory = mine.run_directory(run_place(federation, agreement, run))
    cores = cores_of_rank(world)
    if _kind(world.group, mine) in ("https", "spool"):
        alone = sites is None
        place = (
            mpi_world.one_site(world, number, name) if alone else mpi_world.part_of_site(world, number, agreement.names)
        )
        life = live(place, mine, directory)
        _make_folder(place, federation, mine, directory)
        party = _party(place, agreement, mine, directory, ledger_wait_s, cores, always_signs=True)
        session = Session(party, NoSums(party.site.size), OwnRanks(party), NeverAway())
        if connect:
            session = _join_relay(party, mine, directory, life)
    else:
        chunk_bytes = _agree_on_chunks(world.group, mine)
        place = mpi_world.split(world, number, agreement.names, mine.exchange.rails)
        life = live(place, mine, directory)
        _make_folder(place, federation, mine, directory)
        party = _party(place, agreement, mine, directory, ledger_wait_s, cores)
        again = partial(_join_job, world, place, mine, chunk_bytes, cores)
        session = again(party)
    return Joined(session, mine, directory, world.group.rank == 0, life, again)


def _make_folder(place: Place, federation: Path, mine: SiteFile, directory: Path) -> None:
    if place.site.rank == 0:
        make_run_folder(directory, federation, placed=mine.site.directory is not None)


def _kind(world: Group, mine: SiteFile) -> str:
    """The exchange of this job. ConfigError if its sites ask for different ones."""
    kinds = {kind.decode() for kind in world.gather_bytes(mine.exchange.kind.encode())}
    if len(kinds) > 1:
        raise ConfigError(
            f"the site files of this job ask for the exchanges {', '.join(sorted(kinds))}", "use one kind"
        )
    return kinds.pop()


def _join_relay(party: Party, mine: SiteFile, directory: Path, life: Life) -> Session:
    """A site that meets the others at a relay."""
    # TLS, certificates and the spool take as long to import as all sums within a job.
    from fedhpc.sums.over_relay.access import open_relay
    from fedhpc.sums.over_relay.masked_sum import RelayedSums
    from fedhpc.sums.over_relay.peers import RelayPeers
    from fedhpc.sums.over_relay.recovery import RelayRecovery

    client, rails, lead = open_relay(party, mine, directory, life)
    recovery = RelayRecovery(party, lead)
    sums = RelayedSums(party, client, rails, lead, recovery)
    session = Session(party, sums, RelayPeers(party, client, lead), recovery)
    # A program that starts again asks its sums again from here on, and gets those that are finished.
    kept = b""
    if lead is not None:
        kept = canon([[r.round_, r.salt.hex()] for r in (lead.finished.first(), lead.finished.last())])
    first, last = parse_canon(party.site.broadcast_bytes(kept or None))
    session.round_, session.last_salt = int(first[0]), bytes.fromhex(first[1])
    session.finished = Reached(int(last[0]), bytes.fromhex(last[1]))
    return session


def _join_job(world: World, place: Place, mine: SiteFile, chunk_bytes: int, cores: Cores, party: Party) -> Session:
    """All sites are in this job."""
    agreement = party.agreement
    assert place.rails is not None
    exchange: Exchange = NoExchange()
    if len(agreement.roster) > 1:
        exchange = MpiExchange(agreement.names, place.leaders, place.rails)
    overlap, left = overlap_over(cores, mine.exchange.overlap)
    pipeline = Pipeline(exchange, chunk_bytes=chunk_bytes, overlap=overlap, cores=left)
    attempt = mpi_world.attempt_number(world.group)
    sums = MpiSums(party, exchange, pipeline, rails=place.rails.counts, attempt=attempt)
    session = Session(party, sums, JobPeers(party, exchange, sums), JobRecovery(party, exchange))
    session.round_ = _last_round(place, party.journal)
    return session


def _read_files(
    world: World, federation: Path, sites: Path | None, site: Path | None
) -> tuple[Agreement, Sequence[SiteFile]]:
    """Rank 0 reads and checks first: if it refuses, the others are still before their first wait and end silently."""

    def site_files(agreement: Agreement) -> list[SiteFile]:
        if sites is not None:
            return read_site_directory(sites, agreement)
        assert site is not None
        return [SiteFile.open(site)]

    if world.group.rank == 0:
        source = read_bytes(federation)
        agreement = read_agreement(source, str(federation))
        agreement.images.require_here()
        agreement.secure.require_here()
        files = site_files(agreement)
        if sites is not None:
            number_of_rank(0, world.group.size, files)
        world.group.broadcast_bytes(source)
        return agreement, files
    agreement = read_agreement(world.group.broadcast_bytes(None), str(federation))
    agreement.images.require_here()
    agreement.secure.require_here()
    return agreement, site_files(agreement)


def _agree_on_chunks(world: Group, mine: SiteFile) -> int:
    """Bytes of a chunk: the smallest that any site asks for, since all who carry the same bytes move equal chunks."""
    wishes = world.gather_bytes(mine.exchange.chunk_bytes.to_bytes(4, "little"))
    return min(int.from_bytes(w, "little") for w in wishes)


def _party(
    place: Place,
    agreement: Agreement,
    mine: SiteFile,
    directory: Path,
    ledger_wait_s: float,
    cores: Cores,
    *,
    always_signs: bool = False,
) -> Party:
    """`always_signs`: with keys also where nothing is masked, since the relay's protocol signs all the same."""
    masked = always_signs or (agreement.secure.mode == "pairwise" and len(agreement.roster) > 1)
    identity: bytes | None = None
    keys: LedgerKeys | None = None
    salts: bytes | None = None
    journal: Journal | None = None
    if place.site.rank == 0:
        _refuse_old_run(directory)
        known = known_federation(agreement, place.number)
        accepted = agreement.secure.accept_difference
        held = FileJournal(home_of(mine), known, directory, accepted=accepted, wait_s=ledger_wait_s)
        journal = held
        if masked:
            identity = _identity(agreement, mine, place.number)
            keys = ledger_keys(agreement.hash, held.key, place.number)
            salts = salt_key(agreement.hash, identity, place.number)
    if masked:
        keys = share_ledger_keys(place.site, keys)
        salts = place.site.broadcast_bytes(salts)  # each rank adds the salt that lies in its part
    return Party(
        agreement=agreement,
        number=place.number,
        site=place.site,
        members=agreement.members(),
        identity=None if identity is None else Ed25519PrivateKey.from_private_bytes(identity),
        ledger_keys=keys,
        journal=journal,
        memory=home_of(mine).runs if place.site.rank == 0 else None,
        salt_key=salts,
        cores=cores,
    )


def share_ledger_keys(site: Group, keys: LedgerKeys | None) -> LedgerKeys:
    """The leader's keys, on every rank of its site: each fingerprints its own part of a vector."""
    joined = site.broadcast_bytes(None if keys is None else keys.blocks + keys.whole + keys.value)
    return LedgerKeys(*(joined[i : i + KEY_BYTES] for i in range(0, len(joined), KEY_BYTES)))


def _refuse_old_run(directory: Path) -> None:
    """A run directory of 0.1.0 has its ledger in it, and a state that this protocol cannot go on from."""
    if (directory / LEDGER_FILE).exists():
        raise PolicyError(
            f"{directory} is a run directory of fedhpc 0.1.0: its ledger is in it",
            f"`fedhpc site ledger adopt {directory.parent}` keeps what was summed; the coordinator begins the next "
            "epoch with `fedhpc federation next --from-model model.safetensors`",
        )


def _identity(agreement: Agreement, mine: SiteFile, number: int) -> bytes:
    if mine.site.key is None:
        raise ConfigError(f"site {mine.site.name} has no key", "[site] key = the file with its Ed25519 key")
    hint = "put the key back from a backup: its public half is in the roster"
    if mine.exchange.kind != "mpi":
        hint = lost_keys_hint(mine.base)
    identity = read_identity(mine.path(mine.site.key), hint)
    public = identity_public(identity).hex()
    agreed = agreement.roster[number - 1].sign
    if public != agreed:
        raise PolicyError(
            f"the key file of site {mine.site.name} has the public key {public}, the roster says {agreed}",
            hint,
        )
    return identity


def _last_round(place: Place, journal: Journal | None) -> int:
    """Where new sums go on: after the last round that any site has in its ledger."""
    last = b""
    if place.leaders is not None:
        assert journal is not None
        rounds = place.leaders.gather_bytes(journal.ledger.last_round.to_bytes(8, "little"))
        last = max(int.from_bytes(r, "little") for r in rounds).to_bytes(8, "little")
    return int.from_bytes(place.site.broadcast_bytes(last or None), "little")


def cores_of_rank(world: World) -> Cores:
    """This rank's part of the cores that its host lets it use. Collective."""
    return Cores(len(os.sched_getaffinity(0)) // mpi_world.ranks_on_this_host(world))


def overlap_over(cores: Cores, wish: str) -> tuple[bool, Cores]:
    """Whether a helper thread hides while this one waits for the wire, and the cores that are left for each of them.

    It pays only where this rank has a second core.
    """
    overlap = wish == "on" or (wish == "auto" and cores.count >= 2)
    return overlap, Cores(cores.count - 1) if overlap else cores


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)
