"""What a site counts in the mean of the updates: its share w_u / W, less for an old update, and W over fewer sites."""

from __future__ import annotations

from fedhpc.cohort.staleness import discount
from fedhpc.errors import DataError
from fedhpc.federation.session import Session
from fedhpc.federation.weighted_sum import total_weight
from fedhpc.secure import labels


class Weights:
    """The weights of one model's sites, as [strategy] weights has them: rows, sizes of the roster, or all alike."""

    def __init__(self, session: Session, name: str = labels.PURPOSE_WEIGHTS) -> None:
        """`name`: what the sum of the sites' weights is called in the ledger; one per model."""
        agreement = session.agreement
        self._session, self._name = session, name
        self._kind, self._roster, self._cohort = agreement.strategy.weights, agreement.roster, agreement.cohort
        self.total: float | None = None
        """W: summed before the first round that needs it, then kept. None before, and where weights are public."""

    def share(self, samples: float, rounds_behind: int) -> float:
        """The factor of this site's update, w_u / W, discounted if it began `rounds_behind` rounds before the present.

        `samples`: the site's rows. Raises DataError for a site without any, PolicyError for an update that is too old.
        """
        return self._of_present(samples) * discount(self._cohort, rounds_behind)

    def _of_present(self, samples: float) -> float:
        """w_u / W of this site."""
        if self._kind == "uniform":
            return 1.0 / len(self._roster)
        if self._kind == "declared":
            declared = [entry.samples for entry in self._roster]
            return declared[self._session.party.number - 1] / sum(declared)
        if samples < 1:
            raise DataError(f"site {self._session.site} has no rows to train on")
        if self.total is None:
            self.total = total_weight(self._session, samples, self._name)
        return samples / self.total

    def of_all_over(self, members: tuple[int, ...]) -> float:
        """W of the roster / W of the sites in the sum, where W is public: then the mean is exact over those sites.

        Private weights are not renormalised: W over two sets that differ in one site is that site's size.
        """
        roster = self._roster
        if len(members) == len(roster) or self._kind == "samples":
            return 1.0
        if self._kind == "uniform":
            return len(roster) / len(members)
        return sum(entry.samples for entry in roster) / sum(roster[u - 1].samples for u in members)
