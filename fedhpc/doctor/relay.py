"""Checks of the way to the relay, of clocks and of certificates; for the spool, of its directory and its carrier."""

from __future__ import annotations

import datetime
import json
import stat
import time
from pathlib import Path

from cryptography import x509

from fedhpc.app.logs import printable
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.file_system import exercise
from fedhpc.doctor.route import Route, over_relay
from fedhpc.doctor.subject import Subject
from fedhpc.errors import ConfigError, PeersError, PolicyError, StorageError
from fedhpc.transport.https.addresses import is_loopback, place_of
from fedhpc.transport.https.proxies import proxy_for, proxy_variable
from fedhpc.wire.certificate_times import COMPARE_CLOCKS, begins_later, utc
from fedhpc.wire.pins import read_certificate
from fedhpc.wire.units import span, took

GROUP = "Relay"
_SKEW_WARN_S, _SKEW_FAIL_S = 30.0, 300.0  # certificates are judged with five minutes of grace
_DAYS_WARN = 7
_CARRIER_LATE_S = 900.0
_MOST_NOTE_BYTES = 64 << 10
_IN_JOB = "the job itself waits for it"


def proxy(subject: Subject) -> Finding:
    """Which proxy leads to the relay."""
    site = over_relay(subject.site)
    if isinstance(site, str):
        return skipped(site)
    given, url = site.exchange.proxy, site.exchange.url
    variable = proxy_variable() if given is None else ""
    try:
        found = proxy_for(url, given)
    except ConfigError as error:
        return fail(printable(error.what), printable(error.hint), error.exit_code)
    if not found:
        why = f", since NO_PROXY stands for it and {variable} does not count" if variable else ""
        return ok(f"none: the relay is dialled directly{why}")
    where = variable or "[exchange] proxy"
    if is_loopback(url) and not is_loopback(found):
        return warn(
            f"{place_of(found)}, from {where}, is to connect to {place_of(url)}, which is the proxy's own machine then",
            "name the relay in NO_PROXY",
        )
    return ok(f"{place_of(found)}, from {where}")


def name(subject: Subject) -> Finding:
    """The host that is dialled has an address."""
    return _step(subject, "name", "ask for a name server that knows it, or a route or proxy that needs none")


def connect(subject: Subject) -> Finding:
    """The relay, or the proxy and by CONNECT the relay, takes a connection."""
    return _step(
        subject,
        "connect",
        'is the relay running? nodes without a route need HTTPS_PROXY, or [exchange] kind = "spool"',
    )


def tls(subject: Subject) -> Finding:
    """TLS 1.3, and the key that the federation agreed on."""
    return _step(subject, "tls", "a middlebox that opens TLS cannot be passed: ask for a direct route to this host")


def certificate(subject: Subject) -> Finding:
    """The relay accepts our certificate."""
    return _step(subject, "certificate", "renew it with `fedhpc site request`")


def federation(subject: Subject) -> Finding:
    """The relay knows this federation.toml and us as one of its sites."""
    return _step(subject, "federation", "has its operator run `fedhpc relay admit` for this federation.toml?")


def clock(subject: Subject) -> Finding:
    """This machine's clock against the relay's."""
    route = subject.route
    if isinstance(route, str):
        return skipped(route)
    if route.relay_certificate is None:
        return skipped(f"the way to the relay ended at relay-{route.stopped}")
    if route.skew_s is None:
        return skipped("the relay sends no Date; its certificate's dates agree with this clock to within days")
    return skew(route.skew_s, route.round_trip_s or 0.0)


def skew(seconds: float, round_trip_s: float) -> Finding:
    """`seconds`: this clock minus the relay's."""
    off = max(0.0, abs(seconds) - 0.5 - round_trip_s)
    word = "ahead of" if seconds > 0 else "behind"
    fix = "have the node's clock set (chrony, ntp); deadlines and certificates are judged by it"
    if off > _SKEW_FAIL_S:
        return fail(f"this clock is {span(off)} {word} the relay's", fix, PolicyError.exit_code)
    if off > _SKEW_WARN_S:
        return warn(f"this clock is {span(off)} {word} the relay's", fix)
    return ok("within a second of the relay's" if off < 1 else f"{span(off)} {word} the relay's")


def certificates(subject: Subject) -> Finding:
    """Days left of both certificates, ours also without a route."""
    site = subject.site
    if site is None or site.exchange.certificate is None:
        return skipped("no site file was given" if site is None else "the site file names no certificate")
    mine = read_certificate(site.path(site.exchange.certificate))
    now = datetime.datetime.now(datetime.UTC)
    found = days_left(mine, "this site's certificate", now, "renew it: `fedhpc site request SITE --wait`")
    route = subject.route
    if found.state != "ok" or isinstance(route, str) or route.relay_certificate is None:
        return found
    theirs = days_left(route.relay_certificate, "the relay's certificate", now, "tell the relay's operator")
    return theirs if theirs.state != "ok" else ok(f"{found.what}; {theirs.what}")


def days_left(shown: x509.Certificate, whose: str, now: datetime.datetime, fix: str) -> Finding:
    """Warn in the last week, fail outside the window."""
    if early := begins_later(shown, now):
        return fail(f"{whose} {early}", COMPARE_CLOCKS, PolicyError.exit_code)
    left = (shown.not_valid_after_utc - now).total_seconds()
    if left <= 0:
        return fail(f"{whose} ended {span(-left)} ago, on {utc(shown.not_valid_after_utc)}", fix, PolicyError.exit_code)
    words = f"{whose} has {span(left)} left"
    return warn(words, fix) if left < _DAYS_WARN * 86400 else ok(words)


def spool(subject: Subject) -> Finding:
    """The spool's directory takes whole files, and a carrier looks after it."""
    site, agreement = subject.site, subject.agreement
    if site is None or str(site.exchange.kind) != "spool":
        return skipped('[exchange] kind is not "spool"')
    given: Path | None = getattr(site.exchange, "spool", None)
    if given is None:
        return fail("[exchange] names no spool", 'spool = "DIRECTORY", which site and carrier share')
    folder = site.path(given)
    if not folder.is_dir():
        return fail(f"the spool {folder} is not there", "make it, mode 0700, on a file system that the carrier sees")
    trouble = exercise(folder)
    if trouble:
        return fail(
            f"the spool {folder}: {trouble}", "it must be on a file system that renames", StorageError.exit_code
        )
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH:
        fix = f"chmod o-rwx {folder}; for a carrier under another account: chgrp GROUP {folder}; chmod 2770 {folder}"
        return warn(f"everybody can write into the spool {folder} (mode {mode & 0o7777:04o})", fix)
    if mode & stat.S_IWGRP and not mode & stat.S_ISGID:
        fix = f"chmod 2770 {folder}, or chmod 700 {folder} where site and carrier are one account"
        return warn(f"the group can write into the spool {folder}, which does not hand its group on", fix)
    if agreement is None:
        return skipped(f"{folder} takes files; without federation.toml the carrier's place is not known")
    beat = folder / agreement.hash.hex() / str(agreement.number_of(site.site.name)) / "in" / "carrier.json"
    return carrier(folder, beat)


def carrier(folder: Path, beat: Path) -> Finding:
    """What the carrier's file tells: when it was here last, and what troubled it."""
    fix = "is `fedhpc spool carry` still running, where a route is?"
    try:
        age = time.time() - beat.stat().st_mtime
        with beat.open("rb") as file:
            note = json.loads(file.read(_MOST_NOTE_BYTES))
        trouble = note["trouble"] if isinstance(note, dict) and isinstance(note.get("trouble"), str) else ""
    except FileNotFoundError:
        return warn(f"{folder} takes files, but no carrier was here yet", "start `fedhpc spool carry` where a route is")
    except (ValueError, RecursionError):
        return warn(f"{beat} is not a note of a carrier", fix)
    if age > _CARRIER_LATE_S:
        return warn(f"the carrier was last here {span(age)} ago", fix)
    if trouble:
        return warn(f"the carrier, here {span(age)} ago, is in trouble: {printable(trouble)[:200]}", fix)
    whose = "its group's" if folder.stat().st_mode & stat.S_IWGRP else "this account's only"
    return ok(f"{folder}, {whose}; carrier here {span(age)} ago")


def _step(subject: Subject, step: str, fix: str) -> Finding:
    route = subject.route
    if isinstance(route, str):
        return skipped(route)
    if route.reached(step):
        return ok(_passed(route, step))
    if route.stopped != step or route.error is None:
        return skipped(f"the way to the relay ended at relay-{route.stopped}")
    error = route.error
    what, fix = printable(error.what), printable(error.hint) or fix
    if subject.quick and error.exit_code == PeersError.exit_code:
        return warn(f"{what}; {_IN_JOB}", fix)
    return fail(what, fix, error.exit_code)


def _passed(route: Route, step: str) -> str:
    trip = "" if route.round_trip_s is None else f", {took(route.round_trip_s)} a round trip"
    return {
        "name": f"{route.target} is {', '.join(route.addresses[:3])}",
        "connect": f"{route.target} answers",
        "tls": "TLS 1.3, the relay has the key that the federation agreed on",
        "certificate": f"the relay takes this site's certificate{trip}",
        "federation": "the relay serves this federation.toml",
    }[step]


CHECKS = (
    Check("proxy", GROUP, "compute nodes often reach the world only through a proxy", proxy),
    Check("relay-name", GROUP, "without an address there is no way to the relay", name),
    Check(
        "relay-connect", GROUP, "firewalls of compute nodes let little out; a site needs only this one port", connect
    ),
    Check("relay-tls", GROUP, "only its key identifies the relay: another key means somebody in between", tls),
    Check("relay-certificate", GROUP, "the relay serves only sites whose certificate it accepts", certificate),
    Check("relay-federation", GROUP, "the relay serves only federations that its operator let in", federation),
    Check("clock", GROUP, "certificates, deadlines and the end of the job are judged by this clock", clock),
    Check("certificates", GROUP, "a certificate that ends during the run ends the run", certificates),
    Check(
        "spool",
        GROUP,
        "without a carrier nothing arrives; where everybody may write, anybody could send other bytes",
        spool,
    ),
)
