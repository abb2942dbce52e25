"""NO_PROXY: which hosts are dialled without the proxy. Read as curl does, and with what people write beyond that.

Entries stand between commas or blanks. A name stands for itself and all below it, at label borders; a leading dot
changes nothing, `*.site.example` is only what is below. `*` stands for any characters, alone for every host. Addresses
are compared as numbers, with brackets or not; 10.0.0.0/8 and fd00::/8 are networks. `:port` limits an entry to that
port. No name is looked up, so a relay given by its name is in no network.
"""

from __future__ import annotations

import ipaddress
import re

from fedhpc.errors import ConfigError
from fedhpc.transport.https.addresses import IpAddress, ascii_name, ip_of, scheme_of

_PARTS = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^\[\]:]*))(?P<network>/[^:]*)?(?::(?P<port>[0-9]+))?")


def is_direct(host: str, port: int, entries: str, variable: str = "NO_PROXY") -> bool:
    """Whether one of `entries` stands for `host`:`port`.

    Raises ConfigError if none does but one of them cannot be read, naming it: it may have been meant for this host.
    """
    unread = ""
    for entry in re.split(r"[\s,]+", entries):
        try:
            if entry and _stands_for(entry, host, port):
                return True
        except ValueError:
            unread = unread or entry
    if unread:
        raise ConfigError(
            f"{variable}: {unread!r} is not a host, address or network",
            'write site.example, .site.example, 10.0.0.0/8 or host:port; or set proxy under [exchange], "" for none',
        )
    return False


def _stands_for(entry: str, host: str, port: int) -> bool:
    """Raises ValueError for an entry that cannot be read."""
    scheme = scheme_of(entry)
    text = entry[len(scheme) + 3 :].rstrip("/") if scheme else entry
    if text.count(":") > 1 and not text.startswith("["):
        pattern, only = text, ""  # the colons belong to the IPv6 address
    else:
        found = _PARTS.fullmatch(text)
        if found is None:
            raise ValueError(entry)
        pattern, only = (found["bracketed"] or found["plain"]) + (found["network"] or ""), found["port"] or ""
        if found["bracketed"] is not None and ip_of(pattern.partition("/")[0]) is None:
            raise ValueError(entry)
    return (not only or int(only) == port) and _fits(pattern, host)


def _fits(pattern: str, host: str) -> bool:
    here, there = ip_of(host), ip_of(pattern)
    if there is not None:
        return here == there
    if "/" in pattern:
        return _is_in(here, pattern)
    pattern = pattern.lstrip(".")  # before `ascii_name`, which takes no empty label
    name, pattern = ascii_name(host).lower().rstrip("."), ascii_name(pattern).lower().rstrip(".")
    if not re.fullmatch(r"[a-z0-9_.*-]+", pattern):
        raise ValueError(pattern)
    if "*" in pattern:
        spelled = str(here) if here is not None else name
        return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), spelled) is not None
    return here is None and (name == pattern or name.endswith("." + pattern))


def _is_in(here: IpAddress | None, network: str) -> bool:
    """Raises ValueError if it is not a network."""
    found = ipaddress.ip_network(network, strict=False)
    return here is not None and here.version == found.version and here in found
