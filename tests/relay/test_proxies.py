"""Sites behind a proxy: the relay is stopped and started again, as it is for sites without one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from relay_process import MIB, Proxy, Relay, name, noise, root, until

from fedhpc.enrolment.mailbox import RelayMailbox
from fedhpc.errors import PeersError, PolicyError
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.proxies import proxy_from_environment
from fedhpc.transport.https.retry import Patience, Retry


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def test_a_relay_that_starts_again_is_waited_for(
    new_relay: Callable[..., Relay], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that is under way, and every one that begins meanwhile: the proxy says 503 until the relay is back."""
    relay = new_relay()
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "other.example")
    access = relay.world.access(relay.port, proxy=proxy_from_environment(f"https://127.0.0.1:{relay.port}"))
    told: list[Retry] = []
    client = RelayClient(access, 2, Patience(60.0, 0.05, 0.2), told.append)
    data = noise(3 * MIB)
    client.put(name("M1/1"), b"before")
    waiting: list[object] = []
    calls = [
        threading.Thread(target=lambda: waiting.append(client.listing("ab" * 32, 1, 0, "0.9", 30.0))),
        threading.Thread(target=lambda: waiting.append(client.put(name("M3v/1"), data).hex())),
    ]
    calls[0].start()
    assert relay.stop(signal.SIGTERM) == 0
    calls[1].start()
    until(lambda: len(told) > 2)
    relay.start()
    for call in calls:
        call.join(60)
    assert root(data) in waiting
    assert len(waiting) == 2
    assert client.get(name("M1/1")) == b"before"
    away = [retry.reason for retry in told if " 503 " in retry.reason]
    place = f"127.0.0.1:{relay.port}"
    assert away
    assert away[0] == f"{place}: the proxy {proxy.url[7:]} answered 503 Service Unavailable for {place}"


def test_a_relay_that_stays_away_ends_the_patience(relay: Relay, proxy: Proxy) -> None:
    access = relay.world.access(1, proxy=proxy.url)
    told: list[Retry] = []
    with pytest.raises(PeersError, match=r"the relay https://127\.0\.0\.1:1 cannot be reached: the proxy .* 503 "):
        RelayClient(access, 1, Patience(0.8, 0.05, 0.3), told.append).health()
    assert len(told) >= 3


def test_a_site_without_a_certificate_waits_too(relay: Relay, proxy: Proxy) -> None:
    down: list[str] = []
    box = RelayMailbox(
        "https://127.0.0.1:1", relay.world.relay.pin(), "leiden", "token", proxy.url, lambda why, left: down.append(why)
    )
    with pytest.raises(PeersError, match=" 503 "):
        box.send(b"request", 0.8)
    assert down[0].startswith(f"127.0.0.1:1: the proxy {proxy.url[7:]} answered 503 ")


def test_the_tunnel_leads_nowhere_else(relay: Relay, proxy: Proxy) -> None:
    """Pins decide through a proxy as without: it may connect to whom it likes."""
    access = relay.world.access(relay.port, proxy=proxy.url, relay_pin=relay.world.stranger.pin())
    with pytest.raises(PolicyError, match="the configuration says"):
        RelayClient(access, 1, Patience(1.0)).health()
