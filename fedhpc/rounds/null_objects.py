"""Null objects for the main loop: a run that keeps nothing and says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from fedhpc.errors import InternalError
from fedhpc.federation.checkpoint import Checkpoint, StoredState
from fedhpc.federation.life import Life, Stage
from fedhpc.federation.ranges import Held
from fedhpc.rounds.interfaces import LocalWork, Outbox


class NoCheckpoints:
    """A CheckpointStore that keeps nothing: every run is a fresh one."""

    def rounds(self) -> list[int]:
        """None."""
        return []

    def save(self, checkpoint: Checkpoint) -> None:
        """Forget it."""

    def load(self, round_: int, held: Held | None = None) -> Checkpoint:
        """There is never one to load."""
        raise InternalError(f"no checkpoint of round {round_} was kept")

    def state(self, round_: int) -> StoredState:
        """There is never one to read."""
        raise InternalError(f"no checkpoint of round {round_} was kept")

    def keep_apart(self, round_: int) -> None:
        """Nothing to keep."""

    def discard_after(self, round_: int) -> None:
        """Nothing to discard."""


class Silence:
    """A Reporter that says nothing."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


class Endless(Life):
    """The Life of a process with all the time there is."""

    stage: Stage = "all"
    wait_s: float | None = None

    @override
    def leaves(self) -> str:
        return ""

    @override
    def must_leave(self) -> str:
        return ""

    @override
    def may_begin(self) -> str:
        return ""

    @override
    def hands_on(self) -> bool:
        return False

    @override
    def trained(self) -> None:
        pass

    @override
    def round_took(self, seconds: float) -> None:
        pass

    @override
    def keeps_now(self) -> bool:
        return False

    @override
    def kept(self) -> None:
        pass


class NoOutbox(Outbox):
    """Local work that is lost is done again."""

    @override
    def find(self, state: bytes, held: Held | None = None) -> LocalWork | None:
        return None

    @override
    def holds(self, state: bytes) -> bool:
        return False

    @override
    def keep(self, work: LocalWork) -> None:
        pass

    @override
    def clear(self) -> None:
        pass
