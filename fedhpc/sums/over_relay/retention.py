"""What a site keeps of its sums over a relay to repeat them after a restart, and when it is erased."""

from __future__ import annotations

from fedhpc.federation.party import Opened, SumKind, SumPlan
from fedhpc.federation.vector import Vector
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.finished_sums import FinishedSums


class Retention:
    """The one place that erases keys and sums. At a site's leader.

    Keys of a round go as soon as a restart can do without them: when the round is settled and its result is durable,
    in `sums/` or by a checkpoint; or when the site leaves before its vector was masked.
    """

    def __init__(self, files: AttemptFiles, finished: FinishedSums) -> None:
        self._files, self._finished = files, finished
        self._uncovered = 0  # a settled round whose checkpoint is not written yet
        self._salt = b""  # S of the last sum

    def keep(self, opened: Opened, vector: Vector, mark: bytes, proof: tuple[bytes, ...]) -> None:
        """τ sites have signed this sum's result, `proof`. `mark`: the fingerprint of this site's own vector."""
        if opened.plan.kind is SumKind.TRAINING:
            self._finished.keep_proof(opened.plan.round_, proof)
        if not opened.plan.checkpointed:
            self._finished.keep(opened.plan, opened, vector, mark)

    def settled(self, plan: SumPlan, salt: bytes = b"") -> None:
        """The round is settled, with the sum of salts S or without a sum, and what was to be kept of it is durable."""
        if not plan.skip:  # some sites may hold a sum that others skipped
            self._salt = salt
        if plan.checkpointed:
            self._uncovered = plan.round_
        elif not self._uncovered:
            self._files.erase_until(plan.round_)

    def covered(self, sums: int, *, given: bool) -> None:
        """Everything up to sum `sums` is durable elsewhere. Unless it is `given`, copies beside the ledger stay."""
        self._files.erase_until(sums)
        self._finished.erase_until(sums, self._salt, beside=given)
        self._uncovered = 0

    def leave(self) -> None:
        """The site sums nothing more in this job: keys of vectors that were never masked open nothing."""
        self._files.erase_unsent()
