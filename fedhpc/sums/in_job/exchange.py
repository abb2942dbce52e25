"""The interface of an exchange: it moves opaque messages and lanes, and knows neither keys nor models."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Exchange(Protocol):
    """How this rank reaches the other sites. A leader carries messages, a rail carries its part of the vector."""

    name: str
    sites: int

    def gather(self, message: bytes) -> list[bytes]:
        """Every site's message, in roster order. Called by leaders only."""
        ...

    def leave(self, last_word: bytes = b"", *, refused: bool = False) -> list[bytes] | None:
        """Say that this site exchanges nothing more, so that a site that still does need not wait for it.

        `refused`: it found that its own input cannot be summed. Gives the last words of all sites, in roster order, if
        all of them leave; None at ranks that are not leaders too.
        """
        ...

    def add(self, lanes: NDArray[Any], owners: tuple[int, ...]) -> None:
        """Replace `lanes` [n], unsigned, by their sum over the sites mod 2^k, in place.

        `owners`: for each site the rank that calls with these lanes. This rank is one of them, and ranks that meet more
        than once do so in the same order.
        """
        ...
