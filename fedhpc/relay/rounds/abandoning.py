"""ABANDON at the relay: sites that do without a round's sum, and when such a round is done.

It lies in the lobby, since a site may sign it in any attempt or in none. The relay checks its form and counts: a round
is over once M6 and ABANDON of τ sites name one next state. Their signatures are the sites' business.
"""

from __future__ import annotations

from fedhpc.relay.rounds.attempt_objects import Objects
from fedhpc.relay.rounds.one_round import Round
from fedhpc.secure import messages
from fedhpc.secure.results import read_abandon
from fedhpc.secure.transcript import canon
from fedhpc.wire import kinds

KIND = kinds.ABANDON.name


def take(lobby: Objects, round_: Round, site: int, sites: int) -> None:
    """Note the ABANDON of `site`. Nobody waits for that site from now on. Raises PolicyError for another form."""
    data = lobby.get(f"{KIND}/{site}")
    if data is None:
        return
    message = messages.read_envelope(data, KIND, site, sites)
    round_.abandoned[site] = read_abandon(message["body"], str(site))
    round_.left.add(site)


def ended(round_: Round, threshold: int) -> bytes | None:
    """The content of DONE, if τ sites stand behind one next state and some of them abandoned the round; else None."""
    if not round_.abandoned:
        return None
    states = [*round_.abandoned.items()]
    states += [vote for machine in round_.attempts.values() for vote in machine.states().items()]
    behind: dict[bytes, set[int]] = {}
    for site, state in states:
        behind.setdefault(state, set()).add(site)
    if max(map(len, behind.values())) < threshold:
        return None
    return canon({"attempt": round_.last, "u3": []})
