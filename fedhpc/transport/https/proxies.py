"""Proxies: which one leads to the relay, and the tunnel that it is asked for (CONNECT, RFC 9110 section 9.3.6).

A proxy says 5xx when the relay is down, starts again, or its name is not known for a moment, so that is waited out like
a relay that cannot be reached. An answer that says it never will ends the site at once.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import os
import re
import socket
import time
import urllib.parse
from collections.abc import Iterable, Mapping

from fedhpc.errors import ConfigError
from fedhpc.transport.https.addresses import ascii_name, joined, parse_url, place_of, scheme_of
from fedhpc.transport.https.no_proxy import is_direct
from fedhpc.transport.link_problems import LinkDown, NoWayError, printable

_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")  # the first that is not empty, as for curl
_WITHOUT = ("no_proxy", "NO_PROXY")
_MOST_HEAD_BYTES = 16 << 10
_BUSY = {408, 425, 429}
_STATUS = re.compile(r"HTTP/1\.[0-9] ([1-5][0-9]{2})(?: .*)?")
_HELLO = b"HTTP/"
_SHOWN_BYTES, _REST_S = 60, 0.5
_DIRECTLY = 'or go without it: proxy = "" under [exchange] of site.toml, or NO_PROXY'
_FORM = "http://host:port of a CONNECT proxy, http://user:password@host:port where it asks who you are"


def proxy_for(url: str, given: str | None) -> str:
    """The proxy for the relay at `url`; "" for none. `given`: [exchange] proxy of the site file, which goes first.

    Raises ConfigError for a proxy that cannot be used.
    """
    return proxy_from_environment(url) if given is None else proxy_url(given, "[exchange] proxy")


def proxy_url(text: str, where: str) -> str:
    """http://[user:password@]host:port from what a person has set in `where`; "" for none.

    Raises ConfigError, which names neither user nor password, for any other kind of proxy.
    """
    if not text:
        return ""
    scheme = scheme_of(text).lower()
    if scheme not in ("", "http"):
        raise ConfigError(
            f"{where} cannot be used: the proxy's address is not http://host:port, and {scheme}:// is not supported",
            f'{_FORM}; {_DIRECTLY}; for nodes with no other way out, kind = "spool"',
        )
    url = text if scheme else f"http://{text}"
    try:
        parse_url(url, "http", f"{where} cannot be used: the proxy's address")
    except ConfigError as error:
        raise ConfigError(
            error.what, f"{error.hint}; {_FORM}, with %40 for @, %2F for / and %23 for # in the password"
        ) from None
    return url


def proxy_from_environment(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """The proxy for the relay at `url`; "" where no variable names one, or NO_PROXY stands for the relay.

    https_proxy, HTTPS_PROXY, all_proxy, ALL_PROXY in this order, as for curl, which leaves out empty ones. As for curl
    a relay on this machine is no exception. Raises ConfigError for a proxy of another kind, or a NO_PROXY that may
    have been meant for the relay but cannot be read.
    """
    relay = parse_url(url, "https", "the relay's address")
    variable = proxy_variable(environment)
    if not variable:
        return ""
    without = next((name for name in _WITHOUT if environment.get(name)), _WITHOUT[0])
    if is_direct(relay.hostname or "", relay.port or 0, environment.get(without, ""), without):
        return ""
    return proxy_url(environment[variable].strip(), variable)


def proxy_variable(environment: Mapping[str, str] = os.environ) -> str:
    """The variable of the environment that names a proxy; "" for none."""
    return next((name for name in _VARIABLES if environment.get(name)), "")


def ask_for_tunnel(sock: socket.socket, proxy: str, host: str, port: int, limit_s: float) -> None:
    """Have the proxy at the other end of `sock` connect to `host`:`port`, within `limit_s`; TLS may follow then.

    Raises LinkDown if another try may help, NoWayError if not.
    """
    place, target = place_of(proxy), joined(ascii_name(host), port)
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *_credentials(proxy)]
    try:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        head = _read_head(sock, place, time.monotonic() + limit_s)
    except TimeoutError:
        raise LinkDown(f"the proxy {place} gave no answer within {limit_s:.0f} s") from None
    except OSError as error:
        raise LinkDown(f"the proxy {place}: {printable(error.strerror or str(error))}") from None
    first, *rest = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    found = _STATUS.fullmatch(first)
    if found is None:
        raise _no_proxy(place, head)
    if not found[1].startswith("2"):
        raise _refusal(place, target, int(found[1]), first.partition(" ")[2], _headers(rest), proxy)


def _credentials(proxy: str) -> list[str]:
    parts = urllib.parse.urlsplit(proxy)
    if parts.username is None:
        return []
    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return ["Proxy-Authorization: Basic " + base64.b64encode(pair.encode()).decode()]


def _read_head(sock: socket.socket, place: str, deadline: float) -> bytes:
    """The answer up to its empty line. Raises TimeoutError, ConnectionError, and NoWayError if it is not an answer."""
    head = b""
    while not head.endswith((b"\r\n\r\n", b"\n\n")):  # byte by byte: what follows belongs to TLS
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        byte = sock.recv(1)
        if not byte:
            raise ConnectionError(f"it closed the connection {'in the middle of' if head else 'without'} an answer")
        head += byte
        if head[: len(_HELLO)] != _HELLO[: len(head)]:  # such as a greeting of another service, which waits for us
            sock.settimeout(min(left, _REST_S))
            with contextlib.suppress(OSError):
                head += sock.recv(_SHOWN_BYTES)
            raise _no_proxy(place, head)
        if len(head) > _MOST_HEAD_BYTES:
            raise _no_proxy(place, head)
    return head


def _no_proxy(place: str, said: bytes) -> NoWayError:
    if said[:1] in (b"\x15", b"\x16"):
        words = "it speaks TLS, and https:// proxies are not supported"
    else:
        line = said[:_SHOWN_BYTES].partition(b"\n")[0].rstrip()
        words = f"its answer begins with {printable(line.decode('latin-1'))}"
    return NoWayError(f"what answers at {place} is not an HTTP proxy: {words}", f"{_FORM}; {_DIRECTLY}")


def _refusal(
    place: str, target: str, status: int, line: str, headers: Mapping[str, str], proxy: str
) -> LinkDown | NoWayError:
    line = printable(line)
    if status in _BUSY or status >= 500:
        words = f"the proxy {place} answered {line} for {target}"
        return LinkDown(words, _retry_after(headers.get("retry-after", "")))
    what = f"the proxy {place} refused to connect to {target}: {line}"
    if status != 407:
        return NoWayError(
            what,
            "ask its operators to allow CONNECT to this host and port (HTTPS_PROXY, ALL_PROXY or [exchange] proxy "
            f"names this proxy); {_DIRECTLY}",
        )
    asked = re.sub(r'"[^"]*"', "", headers.get("proxy-authenticate", ""))
    schemes = [word for word in re.split(r"[\s,]+", asked) if re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", word)]
    if schemes and not any(scheme.lower() == "basic" for scheme in schemes):
        hint = (
            f"it asks for {printable(schemes[0])}, and only Basic is spoken here: a local proxy that adds it may help"
        )
    elif urllib.parse.urlsplit(proxy).username is None:
        hint = "it wants to know who you are: http://user:password@host:port, in HTTPS_PROXY or as [exchange] proxy"
    else:
        hint = "it does not take the user and password of http://user:password@host:port: write %40 for @, %3A for :"
    return NoWayError(what, hint)


def _headers(lines: Iterable[str]) -> dict[str, str]:
    """By lower-case name; of several with one name all, separated by commas."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        key = name.strip().lower()
        found[key] = f"{found[key]}, {value.strip()}" if key in found else value.strip()
    return found


def _retry_after(text: str) -> float:
    """Seconds that a Retry-After asks for, a number or a date; 0 for none or what cannot be read."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        then = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())
