"""Every error a user can meet: one line of what, one line of hint, one exit code.

The codes are those of sysexits.h where one fits; 75 tells a batch script to submit the job again.
"""

from __future__ import annotations


class FedhpcError(Exception):
    """Base of all errors of fedhpc. `what` is one line; `hint` says what to do about it."""

    exit_code = 70

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def lines(self) -> str:
        """The message as a terminal shows it: `error: …`, then `hint: …` where there is one."""
        return f"error: {self.what}" + (f"\nhint: {self.hint}" if self.hint else "")


class ConfigError(FedhpcError):
    """A setting, file or command line that cannot be used (exit 64)."""

    exit_code = 64


class DataError(FedhpcError):
    """Input data that is damaged, missing, or does not fit the federation (exit 65)."""

    exit_code = 65


class PeersError(FedhpcError):
    """Other sites or the relay cannot be reached, or disagree (exit 69)."""

    exit_code = 69


class InternalError(FedhpcError):
    """A state that should be impossible; please report it (exit 70)."""

    exit_code = 70


class StorageError(FedhpcError):
    """A file could not be written, read or locked (exit 74)."""

    exit_code = 74


class InterruptedRun(FedhpcError):  # noqa: N818 - not a fault: the run goes on when submitted again
    """The run stopped after a checkpoint; submit it again (exit 75)."""

    exit_code = 75

    def __init__(
        self,
        what: str,
        hint: str = "submit it again: it goes on where it stopped",
        *,
        agreed: bool = False,
        untrained: bool = False,
    ):
        """`agreed`: every rank of the job raises it, so each may end on its own.

        `untrained`: an exchange has nothing to wait for until a job has trained.
        """
        super().__init__(what, hint)
        self.agreed = agreed
        self.untrained = untrained


class PolicyError(FedhpcError):
    """Refused by the rules that protect a site's data: ledger, cohort size, signatures, hashes (exit 77)."""

    exit_code = 77
