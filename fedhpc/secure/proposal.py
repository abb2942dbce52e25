"""M0: what is summed, over whom, from which state. The same bytes in every exchange (docs/protocol.md section 4).

With `mpi` each site builds it from its own values and all compare; over a relay the relay sends it, and each site
compares it with its own values before it answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedhpc.secure.transcript import canon


@dataclass(frozen=True)
class Proposal:
    """M0 of one attempt."""

    attempt: int  # < 2^53
    cohort: tuple[
        tuple[int, bytes], ...
    ]  # (site, the state its vector starts from [32]; zeros for a statistic), rising
    config: bytes  # SHA-256 of federation.toml
    layout: bytes  # H("layout", …)
    purpose: str
    round_: int
    state: bytes  # the state before this round
    tensors: tuple[tuple[int, int], ...]  # (bits, lanes)

    def to_bytes(self) -> bytes:
        """M0 as it is sent and hashed. Raises ValueError for numbers or text that have no canonical form."""
        return canon(
            {
                "attempt": self.attempt,
                "cohort": [[u, base.hex()] for u, base in self.cohort],
                "config": self.config.hex(),
                "layout": self.layout.hex(),
                "purpose": self.purpose,
                "round": self.round_,
                "state": self.state.hex(),
                "tensors": [list(t) for t in self.tensors],
            }
        )


def one_base(sites: Iterable[int], base: bytes) -> tuple[tuple[int, bytes], ...]:
    """The cohort of `sites` whose vectors all start from one state [32]."""
    return tuple((u, base) for u in sorted(sites))
