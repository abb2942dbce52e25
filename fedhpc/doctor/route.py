"""Tries the way to the relay step by step: proxy, name, connection, TLS and pin, our certificate, our federation."""

from __future__ import annotations

import datetime
import email.utils
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass, replace

from cryptography import x509

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.site_file import SiteFile
from fedhpc.errors import FedhpcError, PeersError
from fedhpc.sums.over_relay.access import relay_access
from fedhpc.transport.https.addresses import joined
from fedhpc.transport.https.link import Link, RelayAccess, site_context
from fedhpc.transport.link_problems import LinkDown, RelayProblem
from fedhpc.transport.transport import Traffic
from fedhpc.wire.pins import read_der

STEPS = ("name", "connect", "tls", "certificate", "federation")
_ROUND_TRIPS = 5
_QUICK_S, _FULL_S = 2.0, 10.0  # for each step of the way
_NAME_S = 4.0  # at least: what a second name server needs


@dataclass(frozen=True)
class Route:
    """How far along the way it got. `stopped`: the step of STEPS that failed, "" if none; `error`: why."""

    stopped: str = ""
    error: FedhpcError | None = None
    target: str = ""  # host:port that is dialled: the relay's, or the proxy's
    addresses: tuple[str, ...] = ()
    round_trip_s: float | None = None
    relay_certificate: x509.Certificate | None = None
    skew_s: float | None = None  # this machine's clock minus the relay's, to half a second and half a round trip

    def reached(self, step: str) -> bool:
        """Whether `step` succeeded."""
        return not self.stopped or STEPS.index(step) < STEPS.index(self.stopped)


def way(site: SiteFile | None, agreement: Agreement | None, *, quick: bool) -> Route | str:
    """How far the way to the site's relay works, or why it is not tried. Raises ConfigError or PolicyError."""
    found = over_relay(site)
    if isinstance(found, str):
        return found
    if agreement is None:
        return "no federation.toml was found: it names the relay's key"
    limit = _QUICK_S if quick else _FULL_S
    access = relay_access(agreement, found, agreement.number_of(found.site.name))
    return probe(replace(access, connect_s=limit, stall_s=limit), agreement.hash.hex())


def over_relay(site: SiteFile | None) -> SiteFile | str:
    """The site file, or why this site needs no way to a relay."""
    if site is None:
        return "no site file was given"
    if site.exchange.kind == "mpi":
        return 'the sites meet in one MPI job: [exchange] kind = "mpi"'
    if str(site.exchange.kind) == "spool":
        return 'the carrier goes this way: [exchange] kind = "spool"'
    return site


def probe(access: RelayAccess, config: str) -> Route:
    """Connect as `fedhpc run` does, with limits of a few seconds and without trying again. Raises ConfigError."""
    via = urllib.parse.urlsplit(access.proxy or access.url)
    host, port = via.hostname or "", via.port or 0
    route = Route(target=joined(host, port))
    try:
        route = replace(route, addresses=_addresses(host, port, max(access.connect_s, _NAME_S)))
    except OSError as error:
        return replace(route, stopped="name", error=PeersError(f"{host} has no address: {error.strerror or error}"))
    try:
        socket.create_connection((host, port), access.connect_s).close()
    except OSError as error:
        words = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return replace(route, stopped="connect", error=PeersError(f"{route.target}: {words}"))
    link = Link(access, site_context(access), Traffic())
    try:
        return _speak(link, access, config, route)
    finally:
        link.close()


def _addresses(host: str, port: int, limit_s: float) -> tuple[str, ...]:
    """Asked in a thread, since the C library waits for silent name servers without a limit of ours. Raises OSError."""
    found: list[tuple[str, ...] | OSError] = []

    def ask() -> None:
        try:
            answer = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.append(tuple(dict.fromkeys(str(entry[4][0]) for entry in answer)))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not found:
        raise TimeoutError(f"no answer of the name servers in {limit_s:.0f} s")
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _speak(link: Link, access: RelayAccess, config: str, route: Route) -> Route:
    try:
        link.send_head("GET", "/v1/health", {})  # dials, says CONNECT, shakes hands and compares the pin
    except (FedhpcError, LinkDown) as error:
        step = "connect" if link.stage == "connect" else "tls"  # connect: also the proxy's answer
        return replace(route, stopped=step, error=_words(error, access))
    try:
        asked = time.time()
        response = link.response()
        link.read_json(response)
        route = replace(route, relay_certificate=_shown(link), skew_s=_skew(response.headers.get("date"), asked))
    except (FedhpcError, LinkDown) as error:  # in TLS 1.3 the relay judges our certificate after the handshake
        return replace(route, stopped="certificate", error=_words(error, access))
    try:
        route = replace(route, round_trip_s=_round_trip(link))
        link.send_head("GET", f"/v1/federations/{config}?quiet", {})
        response = link.response()
        link.read_json(response)
        if response.status == 404:
            raise RelayProblem(404, "absent", "it runs no rounds")
    except (FedhpcError, LinkDown) as error:
        return replace(route, stopped="federation", error=_words(error, access))
    return route


def _round_trip(link: Link) -> float:
    """The median of a few round trips [s]."""
    times = []
    for _ in range(_ROUND_TRIPS):
        begun = time.perf_counter()
        link.send_head("GET", "/v1/health", {})
        link.read_json(link.response())
        times.append(time.perf_counter() - begun)
    return sorted(times)[_ROUND_TRIPS // 2]


def _words(error: Exception, access: RelayAccess) -> FedhpcError:
    return error if isinstance(error, FedhpcError) else PeersError(f"{access.place}: {error}")


def _shown(link: Link) -> x509.Certificate:
    return read_der(link.peer_certificate())


def _skew(date: str | None, here: float) -> float | None:
    """This clock minus the relay's: its header has whole seconds."""
    if date is None:
        return None
    try:
        there = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return None
    if there.tzinfo is None:
        there = there.replace(tzinfo=datetime.UTC)
    return here - (there.timestamp() + 0.5)
