"""How long a process of a site may go on, and what it is to do there: the interface to its batch job."""

from __future__ import annotations

from typing import Literal, Protocol

Stage = Literal["all", "train", "exchange"]


class Life(Protocol):
    """How long this process may go on, and what it is to do. Asked on every rank."""

    stage: Stage
    """all; train: local work only, nothing is exchanged; exchange: what was trained is summed, nothing is trained."""
    wait_s: float | None
    """How long to wait for a round to begin before this site leaves; None: as agreed."""

    def leaves(self) -> str:
        """Why this rank was told to stop when it can; "" if it was not."""
        ...

    def must_leave(self) -> str:
        """Why there is no time left for what others wait for; "" if there is."""
        ...

    def may_begin(self) -> str:
        """Why another round would not end in time; "" if it would, or if that is not known."""
        ...

    def hands_on(self) -> bool:
        """Whether this job may end and leave it to the next one to wait for an absent relay."""
        ...

    def trained(self) -> None:
        """This process has trained."""
        ...

    def round_took(self, seconds: float) -> None:
        """A round took so many `seconds`, without waiting for other sites."""
        ...

    def keeps_now(self) -> bool:
        """Whether local work should be kept at this step, since nothing was kept for a long time."""
        ...

    def kept(self) -> None:
        """Local work or a checkpoint was written."""
        ...
