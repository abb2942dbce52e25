"""One round as the relay knows it: who is ready, its attempts, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedhpc.cohort.settings import CohortSettings
from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.relay.rounds.ready import Ready, largest_group
from fedhpc.wire import kinds


@dataclass
class Round:
    """Filled from the names of the store's objects; a restart forgets only `began`, `left` and `everyone`."""

    number: int
    ready: dict[int, tuple[Ready, float]] = field(default_factory=dict)  # well-formed READY, and when it came
    left: set[int] = field(default_factory=set)  # sites that said they leave, and were not READY again
    abandoned: dict[int, bytes] = field(default_factory=dict)  # the next state [32] of who does without the sum
    attempts: dict[int, RoundMachine] = field(default_factory=dict)  # by number, rising
    announced: set[int] = field(default_factory=set)  # attempts whose A… is in the lobby
    everyone: dict[int, bool] = field(default_factory=dict)  # attempts: what the group said that made M0
    given_up: set[int] = field(default_factory=set)  # attempts with NEXT
    done: bool = False
    adding: bool = False  # the sum of the last attempt is being made
    gone: bool = False  # nobody asks for it here any more
    suspect: set[int] = field(default_factory=set)  # attempts found after a reboot, whose vectors may be gone
    audited: set[int] = field(default_factory=set)  # attempts whose vectors were compared with their M3
    tidied: set[int] = field(default_factory=set)  # attempts with NEXT whose vectors are gone
    began: tuple[int, str, float] = (0, "", 0.0)  # attempt, phase, since when

    @property
    def last(self) -> int:
        """The number of the latest attempt; 0 for none."""
        return max([*self.attempts, *self.given_up], default=0)

    @property
    def open(self) -> RoundMachine | None:
        """The attempt that runs, if one does."""
        return None if self.last in self.given_up else self.attempts.get(self.last)

    def let_go(self) -> None:
        """Give back memory and files of sums that are not whole; who makes one now gives its file back at the end."""
        self.gone = True
        for number, machine in self.attempts.items():
            if self.adding and number == self.last:
                machine.stop_adding()
            else:
                machine.let_go()

    def needs_all(self, number: int, settings: CohortSettings) -> bool:
        """Whether an attempt means something over all sites only, as the group of sites says that made its M0.

        Nobody else's word counts: a single site that says so could have the others wait for it forever. After a
        restart the group is the largest of those that have the values of M0, as it was when they were proposed.
        """
        if number not in self.everyone:
            m0 = self.attempts[number].proposed
            own = (m0.layout, m0.purpose, m0.state)
            agree = {u: f for u, (f, _) in self.ready.items() if (f.layout, f.purpose, f.state) == own}
            group = largest_group(agree, any_base=settings.staleness > 0)
            self.everyone[number] = group is not None and group[0].everyone
        return self.everyone[number]

    def never_opens(self, threshold: int) -> bool:
        """Whether so many sites left before they signed the open attempt's set that τ signatures never come."""
        if self.open is None or self.open.u3 is None:
            return False
        unsigned = self.left - set(self.open.there(kinds.M4))
        return len(set(self.open.u3) - unsigned) < threshold

    def look(self, now: float, threshold: int) -> tuple[str, float]:
        """The present phase and since when it lasts."""
        phase = "ready" if self.open is None else "sum" if self.adding else phase_of(self.open, threshold)
        if self.began[:2] != (self.last, phase):
            self.began = (self.last, phase, now)
        return phase, self.began[2]


_AWAITED = {kind.phase: kind for kind in (*kinds.FORMING, kinds.M5, kinds.M6)}
_AWAITED[kinds.Y.phase] = kinds.M3  # the relay adds what came: nobody is late


def phase_of(attempt: RoundMachine, threshold: int) -> str:
    """What an attempt waits for."""
    for kind in kinds.FORMING:
        if attempt.set_of(kind.forms) is None:
            return kind.phase
    return (kinds.M5 if len(attempt.there(kinds.M5)) < threshold else kinds.M6).phase


def awaited(attempt: RoundMachine, phase: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sites that a phase waits for, and those of them whose message is there."""
    kind = _AWAITED[phase]
    return attempt.set_of(kind.senders) or (), attempt.whole() if kind is kinds.M3 else attempt.there(kind)


def limits(settings: CohortSettings) -> Mapping[str, float]:
    """Seconds that a phase of an attempt may last."""
    return {
        "keys": settings.answer_s,
        "shares": settings.answer_s,
        "masked": settings.upload_s,
        "answers": 2 * settings.answer_s,
        "results": settings.upload_s,  # after which the vectors are looked at; the attempt goes on
    }
