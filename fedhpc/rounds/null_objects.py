"""Null objects for the main loop: a run that keeps nothing and says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhpc.errors import InternalError
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.life import Stage
from fedhpc.rounds.interfaces import LocalWork


class NoCheckpoints:
    """A CheckpointStore that keeps nothing: every run is a fresh one."""

    def rounds(self) -> list[int]:
        """None."""
        return []

    def save(self, checkpoint: Checkpoint) -> None:
        """Forget it."""

    def load(self, round_: int) -> Checkpoint:
        """There is never one to load."""
        raise InternalError(f"no checkpoint of round {round_} was kept")

    def discard_after(self, round_: int) -> None:
        """Nothing to discard."""


class Silence:
    """A Reporter that says nothing."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


class Endless:
    """The Life of a process with all the time there is."""

    stage: Stage = "all"
    wait_s: float | None = None

    def leaves(self) -> str:
        """See Life."""
        return ""

    def must_leave(self) -> str:
        """See Life."""
        return ""

    def may_begin(self) -> str:
        """See Life."""
        return ""

    def hands_on(self) -> bool:
        """See Life."""
        return False

    def trained(self) -> None:
        """See Life."""

    def round_took(self, seconds: float) -> None:
        """See Life."""

    def keeps_now(self) -> bool:
        """See Life."""
        return False

    def kept(self) -> None:
        """See Life."""


class NoOutbox:
    """Local work that is lost is done again."""

    def find(self, state: bytes) -> LocalWork | None:
        """See Outbox."""
        return None

    def holds(self, state: bytes) -> bool:
        """See Outbox."""
        return False

    def keep(self, work: LocalWork) -> None:
        """See Outbox."""

    def clear(self) -> None:
        """See Outbox."""
