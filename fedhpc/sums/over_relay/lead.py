"""What only the leader of a site has: the way to the lobby, the site's files of its sums, and the states it knows."""

from __future__ import annotations

from dataclasses import dataclass

from fedhpc.secure.thresholds import Thresholds
from fedhpc.sums.over_relay.acceptable_bases import KnownStates
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.sums.over_relay.finished_sums import FinishedSums
from fedhpc.sums.over_relay.retention import Retention


@dataclass(frozen=True)
class Lead:
    """A site's leader at the relay."""

    exchange: RelayExchange
    files: AttemptFiles
    finished: FinishedSums
    retention: Retention
    thresholds: Thresholds
    states: KnownStates
