"""Addresses of relays and proxies: read, checked, and shown without their secrets."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse

from fedhpc.errors import ConfigError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def parse_url(url: str, scheme: str, what: str) -> urllib.parse.SplitResult:
    """The parts of `scheme://host:port`. Raises ConfigError, whose words hold no user and no password."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        good = parts.scheme == scheme and (parts.port or 0) > 0 and _is_host(host)
        good = good and not (parts.path.strip("/") or parts.query or parts.fragment)
    except ValueError:  # whose words may hold the password
        good = False
    if not good:
        raise ConfigError(f"{what} is not {scheme}://host:port", f"given: {without_password(url)}")
    return parts


def without_password(url: str) -> str:
    """`url` for messages: whole, but without user and password, wherever their marks are, even if the @ is missing.

    Of anything but `host:port` all after the first colon is left out: it may be a password.
    """
    scheme = scheme_of(url)
    rest = (url[len(scheme) + 3 :] if scheme else url).rpartition("@")[2]
    host, colon, after = rest.partition(":")
    if colon and not rest.startswith("[") and not re.match(r"[0-9]*(?:[/?#]|$)", after):
        rest = f"{host}:…"
    return (f"{scheme}://" if scheme else "") + rest


def scheme_of(url: str) -> str:
    """`http` of http://…, as it is written; "" for an address without one."""
    found = _SCHEME.match(url)
    return found[1] if found else ""


def joined(host: str, port: int) -> str:
    """`host:port` as CONNECT, the Host header and people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def place_of(url: str) -> str:
    """`host:port` of an address that `parse_url` takes."""
    parts = urllib.parse.urlsplit(url)
    return joined(parts.hostname or "", parts.port or 0)


def ip_of(host: str) -> IpAddress | None:
    """The address that `host` is, with or without brackets or zone; None for a name."""
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def is_loopback(url: str) -> bool:
    """Whether an address that `parse_url` takes is this machine's own."""
    host = urllib.parse.urlsplit(url).hostname or ""
    found = ip_of(host)
    return found.is_loopback if found is not None else host.rstrip(".") == "localhost"


def ascii_name(host: str) -> str:
    """A name as DNS and TLS write it. Raises ValueError if it has no such form."""
    return host if host.isascii() else host.encode("idna").decode("ascii")


def tls_name(host: str) -> str | None:
    """What TLS says it wants to reach (SNI): a name without a final dot; None for an address (RFC 6066 section 3).

    Numbers such as 127.1, which the C library takes for an address, are not names either.
    """
    name = ascii_name(host).rstrip(".")
    last = name.rpartition(".")[2]
    if ip_of(host) is not None or last.isdigit() or re.fullmatch(r"0[xX][0-9a-fA-F]*", last):
        return None
    return name


def _is_host(host: str) -> bool:
    """Whether `host` is an address, or a name that goes into a request's head and into TLS. Raises ValueError."""
    if ip_of(host) is not None:
        return True
    labels = ascii_name(host).removesuffix(".").split(".")
    return all(0 < len(label) <= 63 and re.fullmatch(r"[A-Za-z0-9_-]+", label) for label in labels)
