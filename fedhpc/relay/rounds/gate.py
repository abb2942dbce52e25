"""Which object a site may write now: names, lengths and phases, looked at before a byte is kept.

Loosely: what comes too early for its sender or twice is judged where it is used. Here stands what would otherwise let a
site fill the relay with objects that no round will ever use, or work in vain for a set that was closed without it.
"""

from __future__ import annotations

from fedhpc.errors import PeersError, PolicyError
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds.attempt_objects import VECTOR
from fedhpc.relay.rounds.federation_rounds import FederationRounds
from fedhpc.relay.rounds.machine import KINDS
from fedhpc.relay.rounds.one_round import Round
from fedhpc.relay.rounds.ready import MAX_READY_BYTES
from fedhpc.secure import labels, messages
from fedhpc.secure.sealing import SEAL_BYTES
from fedhpc.secure.transcript import MAX_CANON_BYTES
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName

MAX_LEAVE_BYTES = 64
MAX_OPEN_ROUNDS = 8  # in which one site is ready at once; it works on one, and rounds are few behind it
_LAST_NUMBER = (1 << 53) - 1
_AFTER_NEXT = (labels.SIGN_UNMASK, labels.SIGN_RESULT)  # a site that answered is bound: the relay wants to know
_AFTER_DONE = (labels.SIGN_SURVIVORS, *_AFTER_NEXT)  # a site that comes back opens the sum that holds its vector
_KEPT = ("CONFIG", "FEATURES")


def check_round(rounds: FederationRounds, round_: int) -> None:
    """Raise Problem (409, round-over) for a round that was cleaned up."""
    if 0 < round_ <= rounds.done - rounds.kept_rounds:
        raise Problem("round-over", f"round {round_} is over; {rounds.done} was the last that is done")


def check_write(rounds: FederationRounds, name: ObjectName, length: int, tree: bytes | None, now: float) -> None:
    """Whether its owner may write `name` with `length` bytes now; `tree`: as declared. The caller holds the lock.

    Raises Problem. A READY that differs makes room for itself.
    """
    check_round(rounds, name.round)
    most = _most_bytes(name.kind, rounds.federation.numbers)
    if most is not None and length > most:
        raise Problem("too-large", f"{length} bytes; {name.kind} has at most {most}")
    if max(name.round, name.attempt) > _LAST_NUMBER:
        raise Problem("forbidden", "rounds and attempts are below 2^53")
    _check_pace(rounds, name, length, tree, now)
    numbers = name.name.split("/")[1:]
    if name.round == 0:
        _check_apart(rounds, name, numbers)
    elif len(numbers) != 1:
        raise Problem("forbidden", f"there is no object {name.name} in a round")
    elif name.attempt == 0:
        _check_ready(rounds, name)
        if tree is not None and name.kind == "READY":
            rounds.make_room(name, length, tree)
    elif not rounds.has(name):  # a site that starts again repeats what it sent; the bytes are compared
        _check_message(rounds.rounds.get(name.round), name, length)


def _check_pace(rounds: FederationRounds, name: ObjectName, length: int, tree: bytes | None, now: float) -> None:
    """A repeat of what is there costs nothing."""
    if name.owner is None or rounds.has(name, tree):
        return
    if not rounds.paces.take(name.owner, name.kind, length, now):
        raise Problem("too-often", f"site {name.owner} writes {name.kind} again and again; wait a few seconds")


def _most_bytes(kind: str, sites: int) -> int | None:
    """The longest object of a kind; None where something else says so."""
    if kind == VECTOR:
        return None
    if kind == "READY":
        return MAX_READY_BYTES
    if kind == "LEAVE":
        return MAX_LEAVE_BYTES
    if kind == "FEATURES":
        return MAX_CANON_BYTES
    if kind.startswith("B") and kind[1:].isdigit():
        return BLOCK_BYTES + SEAL_BYTES
    return messages.max_bytes(kind, sites)


def _check_apart(rounds: FederationRounds, name: ObjectName, numbers: list[str]) -> None:
    """Round 0: the configuration in attempt 0, catch-up in the others."""
    if name.attempt == 0:
        fits = name.kind in _KEPT and len(numbers) == 1
    elif name.kind == "NEED":
        need = rounds.catchups.needs.get(name.attempt)
        fits = len(numbers) == 1 and (need is None or need.site == name.owner)
    else:
        need = rounds.catchups.needs.get(name.attempt)
        answers = name.kind == "STATE" or (name.kind.startswith("B") and name.kind[1:].isdigit())
        fits = answers and len(numbers) == 2 and numbers[0] != numbers[1]
        if fits and (need is None or str(need.site) != numbers[1]):
            raise Problem("too-late", f"site {numbers[1]} does not wait for {name.kind} any more")
    if not fits:
        raise Problem("forbidden", f"{name.name} is not open: nobody asked for it")


def _check_ready(rounds: FederationRounds, name: ObjectName) -> None:
    if name.kind == "LEAVE":
        if name.round not in rounds.rounds:
            raise Problem("forbidden", f"nobody is ready for round {name.round}")
        return
    if name.kind == labels.SIGN_ABANDON:
        round_ = rounds.rounds.get(name.round)
        if round_ is None or not round_.ready:
            raise Problem("forbidden", f"nobody is ready for round {name.round}")
        if round_.done and not rounds.has(name):
            raise Problem("too-late", f"round {name.round} is done")
        return
    if name.kind != "READY":
        raise Problem("forbidden", f"a site writes READY, LEAVE or ABANDON in the lobby, not {name.kind}")
    mine = [r for r in rounds.rounds.values() if name.owner in r.ready and not r.done and r.number != name.round]
    if len(mine) >= MAX_OPEN_ROUNDS:
        raise Problem("quota", f"site {name.owner} is ready in {len(mine)} rounds that are not done")


def _check_message(round_: Round | None, name: ObjectName, length: int) -> None:
    machine = round_.attempts.get(name.attempt) if round_ else None
    if machine is None and round_ is not None and 0 < name.attempt <= round_.last:
        raise Problem("too-late", f"attempt {name.attempt} of round {name.round} has ended")
    if round_ is None or machine is None or name.owner is None:
        raise Problem("forbidden", f"attempt {name.attempt} of round {name.round} was not proposed")
    try:
        if name.kind not in (*KINDS, VECTOR):
            raise PolicyError(f"there is no message {name.kind}")
        if name.owner not in machine.members:
            raise PolicyError(f"site {name.owner} is not in the cohort")
        given_up = name.attempt in round_.given_up or name.attempt != round_.last
        if (given_up and name.kind not in _AFTER_NEXT) or (round_.done and name.kind not in _AFTER_DONE):
            raise PeersError(f"attempt {name.attempt} of round {name.round} has ended")
        machine.check_open(name.kind, name.owner)
    except PolicyError as error:
        raise Problem("forbidden", error.what) from None
    except PeersError as error:
        raise Problem("too-late", error.what) from None
    if name.kind == VECTOR and length != machine.nbytes:
        raise Problem("bad-request", f"a vector of {length} bytes; M0 has {machine.nbytes}")
