"""The exchange through a relay: what sites say to each other as named objects (docs/relay-rounds.md).

It moves opaque messages and knows neither keys nor models. Only a site's leader uses it; vectors are moved by every
rank with its own RelayClient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fedhpc.errors import PeersError
from fedhpc.exchange.http_client import RelayClient
from fedhpc.exchange.http_link import RelayProblem
from fedhpc.exchange.objects import ObjectName

POLL_S = 20.0  # of one long poll; proxies cut silent connections after a minute
_AT_ONCE = 8  # messages fetched at the same time
_CLOSED = ("round-over", "too-late")


class TooLateError(PeersError):
    """The relay takes no more of this: the set was closed, or the round is over. `kind` says which."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class RelayExchange:
    """One site's place among the objects of one federation."""

    def __init__(self, client: RelayClient, config: bytes, me: int) -> None:
        """`config`: SHA-256 of federation.toml [32]. `me`: this site's number."""
        self.client, self.me = client, me
        self._config = config.hex()

    def name(self, round_: int, attempt: int, name: str) -> ObjectName:
        """The full name of an object."""
        return ObjectName(self._config, round_, attempt, name)

    def put(self, round_: int, attempt: int, kind: str, data: bytes, *, to: int = 0) -> None:
        """Store this site's `kind`, for site `to` where it is for one only.

        Raises TooLateError where the relay has gone on without it.
        """
        name = f"{kind}/{self.me}/{to}" if to else f"{kind}/{self.me}"
        try:
            self.client.put(self.name(round_, attempt, name), data)
        except RelayProblem as problem:
            if problem.kind in _CLOSED:
                raise TooLateError(problem.kind, problem.what) from None
            raise

    def watch(self, round_: int, attempt: int) -> Watch:
        """What comes under an attempt; attempt 0 is the lobby of the round."""
        return Watch(self, round_, attempt)

    def listing(self, round_: int, attempt: int, after: str, wait_s: float) -> tuple[list[str], str]:
        """Names that came after the cursor `after`, and the next cursor."""
        found, cursor = self.client.listing(self._config, round_, attempt, after, wait_s)
        return [entry.name for entry in found], cursor

    def standing(self) -> dict[str, Any]:
        """Where the relay says that the federation stands: hints."""
        return self.client.get_json(f"/v1/federations/{self._config}")


class Watch:
    """The objects of one attempt, as they come."""

    def __init__(self, exchange: RelayExchange, round_: int, attempt: int) -> None:
        self._exchange, self._round, self._attempt = exchange, round_, attempt
        self._cursor = ""
        self._names: set[str] = set()
        self._bodies: dict[str, bytes] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def names(self) -> Iterable[str]:
        """All names seen so far."""
        return self._names

    def sites(self, kind: str) -> tuple[int, ...]:
        """The sites whose `kind` is there, rising."""
        prefix = kind + "/"
        return tuple(sorted(int(n[len(prefix) :]) for n in self._names if n.startswith(prefix)))

    def wait(self, seen: Callable[[Watch], bool], deadline: float, poll_s: float = POLL_S) -> bool:
        """Until `seen(self)`, at the latest until `deadline` (time.monotonic); whether it was seen."""
        while not seen(self):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            found, cursor = self._exchange.listing(self._round, self._attempt, self._cursor, min(poll_s, left))
            self._names.update(found)
            self._cursor = cursor
        return True

    def body(self, name: str) -> bytes:
        """The object `name`, which has been seen. Raises PeersError if the relay has it no more."""
        if name not in self._bodies:
            data = self._exchange.client.get(self._exchange.name(self._round, self._attempt, name))
            if data is None:
                raise PeersError(f"the relay has lost {name} of round {self._round}", "it was there before")
            self._bodies[name] = data
        return self._bodies[name]

    def messages(self, kind: str, sites: Iterable[int]) -> dict[int, bytes]:
        """The messages `kind` of `sites`, all of which have been seen."""
        names = {u: f"{kind}/{u}" for u in sites}
        missing = [name for name in names.values() if name not in self._bodies]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(_AT_ONCE, len(missing))) as pool:
                list(pool.map(self.body, missing))
        return {u: self.body(name) for u, name in names.items()}
