"""Where a federation stands, as JSON: hints for sites and people (docs/relay-rounds.md). Numbers only, no names.

What the protocol calls a round is one masked sum, and is called `sum` here: people count rounds of training, of
one sum or several each. How many of those are done only sites know (`fedhpc status`), as only they know the model.
"""

from __future__ import annotations

from typing import Any

from fedhpc.relay.rounds.federation_rounds import FederationRounds
from fedhpc.relay.rounds.one_round import Round, awaited, limits

PAST = 8  # rounds whose times every answer has


def standing(rounds: FederationRounds, now: float, past: int = PAST) -> dict[str, Any]:
    """The answer to GET /v1/federations/C, with the times of the last `past` rounds; the caller holds the lock."""
    federation = rounds.federation
    return {
        "done": rounds.done,
        "sums": [_round(rounds, r, now) for _, r in sorted(rounds.rounds.items()) if r.ready and not r.done],
        "seen_s": {str(u): round(now - at, 3) for u, at in sorted(rounds.heard.times().items())},
        "needs": [need.as_json() for _, need in sorted(rounds.catchups.needs.items())],
        "sites": len(federation.pins),
        "threshold": federation.threshold,
        "bad_vectors": [{"sum": r, "attempt": a, "site": u} for r, a, u in rounds.bad_vectors],
        "times": rounds.times.as_json(now, past),
    }


def _round(rounds: FederationRounds, round_: Round, now: float) -> dict[str, Any]:
    phase, since = round_.look(now, rounds.federation.threshold)
    machine = round_.open
    if machine is None:
        fields = next(iter(round_.ready.values()))[0]
        expected: tuple[int, ...] = tuple(sorted(rounds.federation.pins))
        there = tuple(round_.ready)
        if round_.last:  # a further attempt waits for those who are ready to be heard of
            there = tuple(u for u in there if u in rounds.heard.alive(now))
        purpose, nbytes, members = fields.purpose, fields.nbytes, tuple[int, ...]()
    else:
        expected, there = awaited(machine, phase)
        purpose, nbytes, members = machine.proposed.purpose, machine.nbytes, machine.members
    return {
        "sum": round_.number,
        "attempt": round_.last,
        "phase": phase,
        "ready": sorted(round_.ready),
        "cohort": list(members),
        **{name: [] if machine is None else list(getattr(machine, name) or ()) for name in ("u1", "u2", "u3")},
        "late": [] if phase == "sum" else [u for u in expected if u not in there],
        "since_s": round(now - since, 3),
        "limit_s": limits(rounds.federation.cohort).get(phase),
        "bytes": nbytes,
        "purpose": purpose,
    }
