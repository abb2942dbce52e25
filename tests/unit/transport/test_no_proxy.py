"""NO_PROXY: every way in which curl and people write it."""

from __future__ import annotations

import pytest

from fedhpc.errors import ConfigError
from fedhpc.transport.https.no_proxy import is_direct


@pytest.mark.parametrize(
    ("entries", "host", "port"),
    [
        ("*", "relay.example", 1),
        ("other.example, *", "relay.example", 1),
        ("*:8443", "relay.example", 8443),
        ("relay.example", "relay.example", 1),
        ("site.example", "relay.site.example", 1),
        (".site.example", "relay.site.example", 1),
        (".site.example", "site.example", 1),
        ("*.site.example", "relay.site.example", 1),
        ("*.site.example", "a.b.site.example", 1),
        ("relay*.example", "relay7.example", 1),
        ("SITE.example.", "relay.Site.EXAMPLE", 1),
        ("site.example", "relay.site.example.", 1),
        ("müller.example", "relay.xn--mller-kva.example", 1),
        (".MÜLLER.example", "relay.xn--mller-kva.example", 1),
        ("*.müller.example", "relay.xn--mller-kva.example", 1),
        ("relay.example:8443", "relay.example", 8443),
        ("a.example b.example\tc.example", "b.example", 1),
        ("a.example,b.example , c.example", "c.example", 1),
        (" ,, a.example,", "a.example", 1),
        ("localhost", "localhost", 1),
        ("10.1.2.3", "10.1.2.3", 1),
        ("10.1.2.3:8443", "10.1.2.3", 8443),
        ("10.0.0.0/8", "10.255.0.1", 1),
        ("10.9.9.9/8", "10.255.0.1", 1),
        ("10.0.0.0/255.0.0.0", "10.255.0.1", 1),
        ("10.0.0.0/8:8443", "10.255.0.1", 8443),
        ("10.1.*", "10.1.2.3", 1),
        ("0.0.0.0/0", "192.0.2.1", 1),
        ("::1", "::1", 1),
        ("[::1]", "::1", 1),
        ("[::1]:8443", "::1", 8443),
        ("0:0:0::1", "::1", 1),
        ("fd00::/8", "fd12:3456::1", 1),
        ("[fd00::]/8", "fd12:3456::1", 1),
        ("[fd00::/8]", "fd12:3456::1", 1),
        ("::ffff:10.1.2.3", "10.1.2.3", 1),
        ("https://relay.example:8443/", "relay.example", 8443),
        ("<local>, relay.example", "relay.example", 1),
    ],
)
def test_dialled_directly(entries: str, host: str, port: int) -> None:
    assert is_direct(host, port, entries)


@pytest.mark.parametrize(
    ("entries", "host", "port"),
    [
        ("", "relay.example", 1),
        (" , ", "relay.example", 1),
        ("site.example", "mysite.example", 1),
        (".site.example", "mysite.example", 1),
        ("relay.site.example", "site.example", 1),
        ("*.site.example", "site.example", 1),
        ("*.site.example", "relay.site.example.org", 1),
        ("relay*.example", "a.relay7.example", 1),
        ("relay.example:8443", "relay.example", 443),
        ("10.1.2.3:8443", "10.1.2.3", 443),
        ("[::1]:8443", "::1", 443),
        ("10.0.0.0/8", "11.0.0.1", 1),
        ("10.0.0.0/8", "relay.example", 1),
        ("fd00::/8", "fe80::1", 1),
        ("::/0", "10.1.2.3", 1),
        ("0.0.0.0/0", "::1", 1),
        ("1.2.3", "10.1.2.3", 1),
        ("2.3", "10.1.2.3", 1),
        ("10.1.*", "10.11.2.3", 1),
        ("127.0.0.1", "localhost", 1),
    ],
)
def test_through_the_proxy(entries: str, host: str, port: int) -> None:
    assert not is_direct(host, port, entries)


@pytest.mark.parametrize("entry", ["10.0.0.0/99", "<local>", "a/b", "[relay]", "relay:port", "http://", "a?.example"])
def test_an_entry_that_cannot_be_read_is_named(entry: str) -> None:
    """It may have been meant for this relay: nobody is sent through a proxy in silence."""
    with pytest.raises(ConfigError, match="no_proxy: ") as caught:
        is_direct("relay.example", 8443, f"other.example,{entry}", "no_proxy")
    assert repr(entry) in caught.value.what
    assert "[exchange]" in caught.value.hint
