"""The null object: a federation of one site has nobody to exchange with."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


class NoExchange:
    """The sum over one site is its own vector."""

    name = "none"
    sites = 1

    def gather(self, message: bytes) -> list[bytes]:
        """See Exchange.gather."""
        return [message]

    def leave(self, *, refused: bool = False) -> None:
        """Nobody is left behind."""

    def add(self, lanes: NDArray[Any]) -> None:
        """See Exchange.add: it is the sum already."""
