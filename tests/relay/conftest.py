from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from relay_process import Relay, World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def relay(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """One relay that tests share; each uses rounds of its own."""
    running = Relay(world, tmp_path_factory.mktemp("relay"), any_name=True).start()
    yield running
    running.stop()


@pytest.fixture
def new_relay(world: World, tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    """Starts relays of the test's own, with their limits."""
    made: list[Relay] = []

    def make(limits: str = "", roster: str = "", extra: str = "", *, any_name: bool = True, **start: object) -> Relay:
        folder = tmp_path / f"relay{len(made)}"
        folder.mkdir()
        made.append(Relay(world, folder, limits, roster, extra, any_name=any_name))
        return made[-1].start(**start)  # type: ignore[arg-type]

    yield make
    for relay in made:
        if relay.process is not None and relay.process.poll() is None:
            relay.stop()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(key, raising=False)
