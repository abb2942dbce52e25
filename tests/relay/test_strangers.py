"""Strangers who hold connections and say nothing: enrolled sites get in all the same, from wherever they come."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from itertools import count

import pytest
from relay_process import Relay, name, until

from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience

AT_ONCE = 64  # as many as one attacker needed to lock everybody out
ONE, MANY, SAME = "one address", "an address each", "the sites' address"


class Strangers:
    """TCP connections that send nothing, or only their TLS handshake; when one is closed it is opened again."""

    def __init__(self, relay: Relay, where: str, *, shake: bool = False) -> None:
        self.relay, self.where, self.shake = relay, where, shake
        self.numbers = count()
        self.open: list[socket.socket] = []

    def come(self, many: int = AT_ONCE) -> None:
        for _ in range(many):
            number = next(self.numbers)
            address = {ONE: "127.0.7.7", SAME: "127.0.0.1"}.get(self.where, f"127.1.{number // 250}.{number % 250 + 1}")
            plain = socket.create_connection(("127.0.0.1", self.relay.port), 10, (address, 0))
            self.open.append(plain)
            if self.shake:
                with contextlib.suppress(OSError):
                    self.open[-1] = self.relay.context().wrap_socket(plain)

    def close(self) -> None:
        for sock in self.open:
            sock.close()


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Callable[..., Strangers]:
    def new(relay: Relay, where: str, *, shake: bool = False) -> Strangers:
        strangers = Strangers(relay, where, shake=shake)
        request.addfinalizer(strangers.close)
        return strangers

    return new


def impatient(relay: Relay, site: int) -> RelayClient:
    """A site's client that tries once: one lost connection is an error."""
    return RelayClient(relay.world.access(relay.port, f"site{site}"), 2, Patience(0.0, 0.01, 0.01))


@pytest.mark.parametrize("where", [ONE, MANY, SAME])
def test_silent_connections_lock_no_site_out(
    new_relay: Callable[..., Relay], attack: Callable[..., Strangers], where: str
) -> None:
    relay = new_relay()
    strangers = attack(relay, where)
    for site in (1, 2, 3):
        strangers.come()
        with contextlib.closing(impatient(relay, site)) as client:
            assert client.health() == "ok"
            client.put(name(f"A/{site}"), b"x" * 1000)
    with contextlib.closing(impatient(relay, 4)) as client:
        assert client.get(name("A/1")) == b"x" * 1000
    assert "fedhpc_relay_connections_refused_total 0" in relay.metrics()


@pytest.mark.parametrize("where", [MANY, SAME])
def test_strangers_that_have_shaken_hands_lock_no_site_out(
    new_relay: Callable[..., Relay], attack: Callable[..., Strangers], where: str
) -> None:
    """A handshake costs the stranger little: no certificate is asked for."""
    relay = new_relay("head_s = 60.0\n")
    strangers = attack(relay, where, shake=True)
    for site in (1, 2):
        strangers.come(AT_ONCE + 8)
        with contextlib.closing(impatient(relay, site)) as client:
            assert client.health() == "ok"


def test_connections_of_sites_are_not_touched(
    new_relay: Callable[..., Relay], attack: Callable[..., Strangers]
) -> None:
    relay = new_relay()
    with relay.raw("site1") as sock:
        until(lambda: "fedhpc_relay_connections 1" in relay.metrics())
        attack(relay, SAME).come(2 * AT_ONCE)
        attack(relay, MANY).come(2 * AT_ONCE)
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nhost: r\r\n\r\n")
        assert b"200 OK" in sock.recv(4096)
        until(lambda: evictions(relay) >= 2 * AT_ONCE)


def evictions(relay: Relay) -> int:
    return int(relay.metrics().split("\nfedhpc_relay_connections_evicted_total ")[1].split("\n")[0])
