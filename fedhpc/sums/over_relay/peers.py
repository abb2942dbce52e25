"""The other sites of a relay: each in jobs of its own, so what is announced stays there for those that come later."""

from __future__ import annotations

import time

from typing_extensions import override

from fedhpc.federation.party import Party
from fedhpc.sums.over_relay.lead import Lead
from fedhpc.sums.unconnected import OwnRanks
from fedhpc.transport.transport import Transport

_OWN_S = 60.0  # until the relay shows what this site has put there


class RelayPeers(OwnRanks):
    """Words through the relay; only this site's ranks share its job and stop together."""

    def __init__(self, party: Party, client: Transport, lead: Lead | None) -> None:
        """`client`: this rank's own. `lead`: at the leader."""
        super().__init__(party)
        self._client, self._lead = client, lead

    @override
    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        """Each site compares with all that came before it."""
        assert self._lead is not None
        exchange = self._lead.exchange
        exchange.put(0, 0, topic, message or b"-")
        watch = exchange.watch(0, 0)
        watch.wait(lambda w: f"{topic}/{exchange.me}" in w, time.monotonic() + _OWN_S)
        return {u: b"" if m == b"-" else m for u, m in watch.messages(topic, watch.sites(topic)).items()}

    @override
    def leave(self, *, refused: bool = False) -> None:
        """Other sites do not wait for one that is not ready, so there is nothing to say."""
        self._client.close()
