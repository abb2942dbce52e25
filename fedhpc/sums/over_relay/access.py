"""Joining through a relay: this site's access to it, and the proof that every site signed the same configuration."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fedhpc.agreement.approvals import Approvals, configuration
from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.identity import lost_keys_hint
from fedhpc.agreement.run_folder import bind_run_folder
from fedhpc.agreement.site_file import SiteFile
from fedhpc.errors import ConfigError, InterruptedRun, PeersError, PolicyError
from fedhpc.federation.life import Life
from fedhpc.federation.party import GIVEN_EPOCH, Party
from fedhpc.files import write_whole
from fedhpc.secure.epochs import check_signed
from fedhpc.secure.thresholds import Thresholds, choose_thresholds
from fedhpc.secure.transcript import canon, parse_canon
from fedhpc.sums.over_relay.acceptable_bases import KnownStates
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.exchange import Interrupts, RelayExchange, objects_of
from fedhpc.sums.over_relay.finished_sums import FinishedSums
from fedhpc.sums.over_relay.lead import Lead
from fedhpc.sums.over_relay.orders import Order, end_if_stopped
from fedhpc.sums.over_relay.retention import Retention
from fedhpc.sums.over_relay.waiting import wait_telling
from fedhpc.transport.https.addresses import place_of
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.link import RelayAccess
from fedhpc.transport.https.proxies import proxy_for
from fedhpc.transport.https.retry import Patience, Retry
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.spool.client import SpoolClient
from fedhpc.transport.spool.folder import SpoolFolder
from fedhpc.transport.transport import Transport
from fedhpc.wire.pins import pin_of, read_certificate

_TOPIC = "CONFIG"
_MOST_BYTES = 4 << 20
_ROSTER_S = 6.0  # a relay that has just admitted the federation reads its roster every 2 s
_TELL_S = 10.0  # somebody sits there: two sites are started by telephone
_MOST_RAILS = 8  # a relay takes 64 connections of a site, and a few fill its line


def open_relay(party: Party, mine: SiteFile, directory: Path, life: Life) -> tuple[Transport, int, Lead | None]:
    """This rank's way to the relay of this site file, the ranks of the site that move a part, and what a leader has.

    Every rank of the site calls it; the leader also proves the configuration.

    Raises ConfigError, PolicyError (another key, or not all sites signed), PeersError (relay out of reach), and
    InterruptedRun on every rank if `life` ends before all sites have signed.
    """
    agreement = party.agreement
    asked = mine.exchange.rails
    rails = min(_MOST_RAILS if asked == "auto" else int(asked), party.site.size)
    lead: Lead | None = None
    signatures = directory / "signatures.json"
    # A site that never met the relay may have a wrong address, which no later job finds right.
    client = _open_transport(party, mine, life, met=signatures.exists())
    word = b"."
    if party.leads:
        assert party.journal is not None
        place = place_of(mine.exchange.url) if mine.exchange.kind == "https" else ""
        exchange = RelayExchange(client, agreement.hash, party.number, place)
        exchange.interrupts = Interrupts(life.leaves, life.must_leave, life.wait_s)
        try:
            _prove_configuration(party, exchange, mine, signatures)
        except InterruptedRun as stopped:
            word = Order.STOP + stopped.what.encode()
        bind_run_folder(directory, agreement.hash)
        files = AttemptFiles(directory / "attempts", party.journal)
        thresholds = thresholds_of(agreement)
        states = KnownStates(party, exchange, thresholds)
        beside = None if party.memory is None else party.memory / f"{agreement.hash.hex()}.sums"
        finished = FinishedSums(directory / "sums", beside)
        finished.refuse_lost_ledger(party.journal.ledger, party.name)
        files.refuse_lost_ledger(party.name)
        lead = Lead(exchange, files, finished, Retention(files, finished), thresholds, states)
    end_if_stopped(party.site.await_bytes(word if party.leads else None))
    return client, rails, lead


def _open_transport(party: Party, mine: SiteFile, life: Life, *, met: bool) -> Transport:
    """This rank's way to the relay. `met`: it was reached by an earlier job."""
    section = mine.exchange
    tell = _Retries(life, tells=party.leads, met=met)
    if section.kind == "spool":
        folder = spool_of(party.agreement, mine, party.number)
        return SpoolClient(folder, section.connections, section.patience_s, tell, leads=party.leads)
    access = relay_access(party.agreement, mine, party.number)
    return RelayClient(access, section.connections, Patience(total_s=section.patience_s), tell)


def spool_of(agreement: Agreement, mine: SiteFile, number: int, instead: Path | None = None) -> SpoolFolder:
    """The site's part of its spool directory, or of `instead`. Raises ConfigError."""
    if instead is None and mine.exchange.spool is None:
        raise ConfigError("the site file names no spool directory", '[exchange] kind = "spool", spool = DIRECTORY')
    place = instead if instead is not None else mine.path(mine.exchange.spool or Path())
    return SpoolFolder(place, agreement.hash.hex(), number, agreement.secure.tree)


def thresholds_of(agreement: Agreement) -> Thresholds:
    """t and τ. Also in mode `off` the relay's protocol needs them."""
    secure = agreement.secure
    found = secure.thresholds(len(agreement.roster))
    return found or choose_thresholds(
        len(agreement.roster), secure.colluders, secure.threshold, accept_two_sites=secure.accept_two_sites
    )


def relay_access(agreement: Agreement, mine: SiteFile, number: int) -> RelayAccess:
    """How this site reaches the relay. Raises ConfigError, and PolicyError for another key than the roster's."""
    section = mine.exchange
    if not agreement.relay.tls:
        raise ConfigError("federation.toml has no [relay] tls", "the coordinator makes it with `fedhpc federation new`")
    if not (section.url and section.certificate and section.key):
        raise ConfigError(
            "the relay needs url, certificate and key in [exchange] of the site file",
            "`fedhpc site init` writes such a site file; with a spool only the machine that carries needs them",
        )
    certificate = mine.path(section.certificate)
    fetch = f"`fedhpc site request {mine.base} --wait` fetches one, once the coordinator has admitted this site"
    if not certificate.exists():
        raise ConfigError(f"cannot read the certificate {certificate}: it is not there", fetch)
    agreed = agreement.roster[number - 1].tls
    shown = pin_of(read_certificate(certificate, fetch)).hex()
    if shown != agreed:
        raise PolicyError(
            f"the certificate {certificate} has the key {shown}, the roster says {agreed or 'none'} for site "
            f"{mine.site.name}",
            f"`fedhpc site request {mine.base} --wait` fetches the certificate of this site's own key; if that is not "
            f"the roster's: {lost_keys_hint(mine.base)}",
        )
    proxy = proxy_for(section.url, section.proxy)
    pin, key, hint = bytes.fromhex(agreement.relay.tls), mine.path(section.key), lost_keys_hint(mine.base)
    return RelayAccess(section.url, pin, certificate, key, proxy, keys_hint=hint, suite=agreement.secure.tree)


def _prove_configuration(party: Party, exchange: RelayExchange, mine: SiteFile, kept: Path) -> None:
    """Every site of the roster has signed exactly this configuration, or nothing runs."""
    agreement = party.agreement
    own = Approvals(mine.base / "approvals").own(agreement)
    signatures = _read_kept(kept)
    everyone = {m.number for m in party.members}
    if set(signatures) != everyone or signatures.get(party.number) != own:
        _publish(exchange, own, agreement)
        refuse_forgotten_sums(party, exchange)
        watch = exchange.watch(0, 0)

        def missing() -> str:
            names = [m.name for m in party.members if m.number not in watch.sites(_TOPIC)]
            return f"site {', '.join(names)}"

        wait_s = exchange.interrupts.wait_s
        deadline = time.monotonic() + min(agreement.cohort.deadline_s, math.inf if wait_s is None else wait_s)
        words = f"has not started with this federation.toml yet{exchange.at}"
        if not wait_telling(
            watch, lambda w: everyone <= set(w.sites(_TOPIC)), deadline, lambda: f"{missing()} {words}", first_s=_TELL_S
        ):
            if wait_s is not None:
                raise InterruptedRun(f"{missing()} {words}")
            raise PeersError(
                f"{missing()} has not signed the configuration {agreement.hash.hex()}",
                "each site runs `fedhpc site approve` and then `fedhpc run`",
            )
        signatures = watch.messages(_TOPIC, sorted(everyone))
    check_signed(configuration(agreement), party.members, signatures)
    write_whole(kept, canon({str(u): message.hex() for u, message in signatures.items()}), mode=0o600)


def refuse_forgotten_sums(party: Party, exchange: RelayExchange) -> None:
    """Raise PolicyError if this site has summed before, and neither its run directory nor its ledger knows of it.

    It may have put a vector into an open round; a second one could show the first. No sum is done before all sites have
    started once. The relay's word is a hint: one that says nothing leaves this as it was.
    """
    journal = party.journal
    assert journal is not None
    if len(journal.ledger) or not journal.fresh:
        return
    try:
        standing = exchange.standing()
    except RelayProblem as problem:
        if problem.status != 404:
            raise
        return
    named = [entry.get(key) for entry in objects_of(standing, "sums") for key in ("ready", "cohort")]
    if standing.get("done") or any(isinstance(of, list) and party.number in of for of in named):
        what = f"site {party.name} took part in this federation before, and its ledger knows nothing of it"
        journal.refuse_lost(what)
        lost = "if both are lost, this site can sum again only in the next epoch"
        raise PolicyError(
            what, f"put ledger or run directory back, or name them ([ledger] path, --out); {lost}: {GIVEN_EPOCH}"
        )


def _publish(exchange: RelayExchange, own: bytes, agreement: Agreement) -> None:
    """Put this site's signature there: the first that the relay hears of it."""
    end = time.monotonic() + _ROSTER_S
    while True:
        try:
            return exchange.put(0, 0, _TOPIC, own)
        except PolicyError as error:
            if "forbidden" not in error.what or time.monotonic() > end:
                hint = f"has its operator run `fedhpc relay admit` for this federation.toml, {agreement.hash.hex()}?"
                raise PolicyError(error.what, error.hint or hint) from None
        time.sleep(0.5)


def _read_kept(path: Path) -> dict[int, bytes]:
    """Signatures of an earlier start: a relay that lost its disk does not stop those who have seen all of them."""
    try:
        with open(path, "rb") as file:
            value = parse_canon(file.read(_MOST_BYTES))
        return {int(u): bytes.fromhex(text) for u, text in value.items()} if isinstance(value, Mapping) else {}
    except (OSError, ValueError, TypeError):
        return {}


class _Retries:
    """While the relay cannot be reached: tells people until when and why, and leaves when there is no time left.

    At the end of patience too, where a later job may find it again; else that is a PeersError.
    """

    def __init__(self, life: Life, *, tells: bool, met: bool) -> None:
        self._life, self._tells, self._met, self._told = life, tells, met, 0.0

    def __call__(self, retry: Retry) -> None:
        why = self._life.must_leave()
        if why:
            raise InterruptedRun(f"left while the relay could not be reached ({retry.reason}): {why}")
        if not retry.patience_left_s:
            if self._met and self._life.hands_on():
                raise InterruptedRun(f"the relay cannot be reached: {retry.reason}", "the next job tries again")
            return
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if not self._tells or (not terminal and now - self._told < 5):
            return
        self._told = now
        line = (
            f"waiting for the relay ({retry.reason}): next try in {retry.seconds_left:.0f} s, "
            f"giving up in {retry.patience_left_s:.0f} s"
        )
        print(f"\r{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
