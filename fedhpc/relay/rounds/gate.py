"""Which object a site may write now: names, lengths and phases, looked at before a byte is kept.

Loosely: what comes too early for its sender, or twice, is judged where it is used. Here stands what would otherwise let
a site fill the relay with objects that no round will ever use, or work in vain for a set that was closed without it.
What a kind is, its row in wire/kinds.py says.
"""

from __future__ import annotations

from fedhpc.errors import PeersError, PolicyError
from fedhpc.relay.problems import Problem
from fedhpc.relay.rounds.federation_rounds import FederationRounds
from fedhpc.relay.rounds.one_round import Round
from fedhpc.secure.message_kinds import ENVELOPE_BYTES
from fedhpc.wire import kinds
from fedhpc.wire.kinds import Kind, Owner, Place
from fedhpc.wire.object_names import ObjectName

MAX_OPEN_ROUNDS = 8  # in which one site is ready at once; it works on one, and rounds are few behind it
_LAST_NUMBER = (1 << 53) - 1


def check_round(rounds: FederationRounds, round_: int) -> None:
    """Raise Problem (409, round-over) for a round that was cleaned up."""
    if 0 < round_ <= rounds.done - rounds.kept_rounds:
        raise Problem("round-over", f"round {round_} is over; {rounds.done} was the last that is done")


def check_write(rounds: FederationRounds, name: ObjectName, length: int, tree: bytes | None, now: float) -> None:
    """Whether its owner may write `name` with `length` bytes now; `tree`: as declared. The caller holds the lock.

    Raises Problem. A READY that differs makes room for itself.
    """
    check_round(rounds, name.round)
    _check_length(rounds, name, length)
    if max(name.round, name.attempt) > _LAST_NUMBER:
        raise Problem("forbidden", "rounds and attempts are below 2^53")
    kind = kinds.kind_of(name)
    if kind is None or kind.owner is Owner.RELAY:
        if kinds.row(name.kind) is None:
            raise Problem("forbidden", f"there is no message {name.kind}")
        where = "in the lobby" if name.round and not name.attempt else "there"
        raise Problem("forbidden", f"no site writes {name.name} {where}")
    _check_pace(rounds, kind, name, length, tree, now)
    if kind.place is Place.CATCH_UP:
        _check_catch_up(rounds, kind, name)
    elif kind.place is Place.LOBBY:
        _check_lobby(rounds, kind, name)
        if tree is not None and kind is kinds.READY:
            rounds.make_room(name, length, tree)
    elif kind.place is Place.ATTEMPT and not rounds.has(name):  # what is there may be repeated; the bytes are compared
        _check_message(rounds.rounds.get(name.round), kind, name, length)


def _check_length(rounds: FederationRounds, name: ObjectName, length: int) -> None:
    kind = kinds.row(name.kind)
    most = ENVELOPE_BYTES if kind is None else kind.most_bytes(rounds.federation.numbers)
    if most is not None and length > most:
        raise Problem("too-large", f"{length} bytes; {name.kind} has at most {most}")


def _check_pace(
    rounds: FederationRounds, kind: Kind, name: ObjectName, length: int, tree: bytes | None, now: float
) -> None:
    """A repeat of what is there costs nothing."""
    if name.owner is None or rounds.has(name, tree):
        return
    if not rounds.paces.take(name.owner, kind.purse, length, now):
        raise Problem("too-often", f"site {name.owner} writes {name.kind} again and again; wait a few seconds")


def _check_catch_up(rounds: FederationRounds, kind: Kind, name: ObjectName) -> None:
    need = rounds.catchups.needs.get(name.attempt)
    if kind is kinds.NEED:
        if need is not None and need.site != name.owner:
            raise Problem("forbidden", f"{name.name}: another site asks under this number")
        return
    giver, taker = name.sites
    if giver == taker:
        raise Problem("forbidden", f"{name.name}: a site gives itself nothing")
    if need is None or need.site != taker:
        raise Problem("too-late", f"site {taker} no longer waits for {name.kind}")


def _check_lobby(rounds: FederationRounds, kind: Kind, name: ObjectName) -> None:
    round_ = rounds.rounds.get(name.round)
    if kind is kinds.READY:
        mine = [r for r in rounds.rounds.values() if name.owner in r.ready and not r.done and r.number != name.round]
        if len(mine) >= MAX_OPEN_ROUNDS:
            raise Problem("quota", f"site {name.owner} is ready in {len(mine)} rounds that are not done")
    elif round_ is None or (kind is kinds.ABANDON and not round_.ready):
        raise Problem("forbidden", f"nobody is ready for round {name.round}")
    elif kind is kinds.ABANDON and round_.done and not rounds.has(name):
        raise Problem("too-late", f"round {name.round} is done")


def _check_message(round_: Round | None, kind: Kind, name: ObjectName, length: int) -> None:
    machine = round_.attempts.get(name.attempt) if round_ else None
    if machine is None and round_ is not None and 0 < name.attempt <= round_.last:
        raise Problem("too-late", f"attempt {name.attempt} of round {name.round} has ended")
    if round_ is None or machine is None or name.owner is None:
        raise Problem("forbidden", f"attempt {name.attempt} of round {name.round} was not proposed")
    try:
        if name.owner not in machine.members:
            raise PolicyError(f"site {name.owner} is not in the cohort")
        given_up = name.attempt in round_.given_up or name.attempt != round_.last
        if (given_up and not kind.after_next) or (round_.done and not kind.after_done):
            raise PeersError(f"attempt {name.attempt} of round {name.round} has ended")
        machine.check_open(kind.name, name.owner)
    except PolicyError as error:
        raise Problem("forbidden", error.what) from None
    except PeersError as error:
        raise Problem("too-late", error.what) from None
    if kind is kinds.M3V and length != machine.nbytes:
        raise Problem("bad-request", f"a vector of {length} bytes; M0 has {machine.nbytes}")
