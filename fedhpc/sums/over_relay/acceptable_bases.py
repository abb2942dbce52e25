"""Which states an update may begin from (policy "buffered"): this site's own chain, and what τ sites signed lately.

A site that was away moved over some states without ever having them. Where the relay names one of those as another
site's base, the signed results (M6) of the last rounds, which the relay keeps, show that it is one. They do not show of
which round it is: how old another site's update is rests on that site, whose ledger keeps it out of a second sum.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from fedhpc.errors import FedhpcError, PolicyError
from fedhpc.federation.party import Party, SumKind, SumPlan
from fedhpc.secure import labels
from fedhpc.secure.attempt import Expected
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.results import RoundResults
from fedhpc.secure.thresholds import Thresholds
from fedhpc.secure.transcript import parse_canon
from fedhpc.sums.over_relay.exchange import RelayExchange

_log = logging.getLogger("fedhpc.federation")


class KnownStates:
    """The states of one federation that the leader of a site knows, by the masked sum whose result they are."""

    def __init__(self, party: Party, exchange: RelayExchange, thresholds: Thresholds) -> None:
        self._party, self._exchange, self._thresholds = party, exchange, thresholds
        agreement = party.agreement
        staleness = agreement.cohort.staleness
        sums = 2 if agreement.secure.bound is not None else 3  # of one training round, what was measured with it
        # W is summed once, between the first model and the first update that begins from it.
        self._rounds = sums * (staleness + 1) + (staleness > 0 and agreement.strategy.weights == "samples")
        self._staleness = staleness
        self._by_round: dict[int, bytes] = {}

    def reached(self, round_: int, state: bytes) -> None:
        """This site went on to `state` [32], the result of masked sum `round_`."""
        self._by_round[round_] = state
        for old in [r for r in self._by_round if r < round_ - self._rounds]:
            del self._by_round[old]

    def bases(self, plan: SumPlan) -> frozenset[bytes]:
        """What the vectors of a sum may start from, as far as this site knows by itself."""
        if plan.kind is SumKind.STATISTIC:
            return frozenset({plan.base})
        late = {state for round_, state in self._by_round.items() if round_ >= plan.round_ - self._rounds}
        return frozenset({plan.base, plan.state} | (late if self._staleness else set()))

    def widened(self, own: Expected, proposed: Proposal, plan: SumPlan) -> tuple[Expected, frozenset[bytes]]:
        """`own` with the older models of others that τ sites signed lately; the bases that remain unknown.

        Without `staleness` no site begins from another model, and SiteAttempt refuses a relay that says so.
        """
        bases = frozenset(base for u, base in proposed.cohort if u != self._party.number)
        if not self._staleness or bases <= own.bases:
            return own, frozenset()
        own = replace(own, bases=own.bases | self.look_up(plan, bases - own.bases))
        return own, bases - own.bases

    def look_up(self, plan: SumPlan, wanted: frozenset[bytes]) -> frozenset[bytes]:
        """Those of the `wanted` bases of other sites that τ sites signed in one of the last rounds."""
        found: set[bytes] = set()
        if plan.kind is SumKind.STATISTIC or not self._staleness:
            return frozenset()
        for round_ in range(plan.round_ - 1, max(0, plan.round_ - 1 - self._rounds), -1):
            if wanted <= found:
                break
            try:
                state = self._signed(round_)
            except (FedhpcError, ValueError, LookupError, TypeError) as error:
                _log.info("the results of round %d cannot be read: %s", round_, error)
                continue
            found |= {state} & wanted
        return frozenset(found)

    def _signed(self, round_: int) -> bytes:
        """The state that τ sites signed in a round that is done. Raises what bad or missing objects raise."""
        client, name = self._exchange.client, self._exchange.name
        done = client.get(name(round_, 0, "DONE"))
        if done is None:
            raise PolicyError(f"round {round_} is not done")
        value = parse_canon(done)
        results = RoundResults(self._party.members, self._thresholds, None)
        everyone = {m.number for m in self._party.members}
        given_up = not value["u3"]  # some sites did without its sum, others may hold it
        for u in sorted(everyone if given_up else everyone & set(value["u3"])):
            found = [name(round_, value["attempt"], f"{labels.SIGN_RESULT}/{u}")] if value["attempt"] else []
            found += [name(round_, 0, f"{labels.SIGN_ABANDON}/{u}")] if given_up else []
            for message in map(client.get, found):
                if message is not None:
                    results.receive(message)
            settled = results.settled()
            if settled is not None:
                return settled.state
        raise PolicyError(f"{self._thresholds.threshold} sites did not sign one result of round {round_}")
