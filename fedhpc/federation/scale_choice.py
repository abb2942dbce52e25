"""One scale for a whole tensor, chosen with the other sites: a masked count of sites per exponent (scales.py).

A false mark can spoil the count: −1 in the highest bin hides the site with the largest value, and a mark in the last
bin would round every update to zero. A cheat that tries again learns again. So a count that honest sites cannot have
made ends the epoch, and the next one has a public bound. No site is blamed and no size is told, since either would
show which site holds the largest value.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedhpc.errors import PolicyError
from fedhpc.federation.party import Party
from fedhpc.federation.scales import Largest, Scales, exponent_counts, exponent_scales, lost_to_rounding
from fedhpc.federation.session import Session
from fedhpc.federation.vector import Vector
from fedhpc.files import write_whole
from fedhpc.secure import labels
from fedhpc.secure.ring import Tensor

_log = logging.getLogger("fedhpc.federation")
_HINT = "no site is known to be at fault; start the next epoch with a public bound: [secure] bound in federation.toml"


def choose_scales(
    session: Session, tensors: Mapping[str, Largest], factor: float, purpose: str, *, everyone: bool = False
) -> Scales:
    """A scale per float tensor from a masked count of sites per exponent of its largest |x · factor|.

    `everyone`: as in the sum that the scale is for; otherwise that sum would wait forever for a site that this count
    left out.

    The leader's `tensors` count. The sites learn how many of them have each exponent, and nothing else.
    Raises PolicyError for counts that honest sites cannot have made; then this epoch never counts again.
    """
    party, sites = session.party, len(session.sites)
    if not tensors or sites == 1:
        return Scales(dict.fromkeys(tensors, 0))
    refuse_another_count(party)
    marks = exponent_counts(tensors, factor, session.site)
    vector = Vector(session.layout([Tensor(n, "int64", m.shape) for n, m in marks.items()]))
    vector.fill(marks)
    opened = session.add(vector, session.statistic(purpose, everyone=everyone, category=labels.CLASS_SCALE))
    assert opened is not None
    check_counts(party, vector.views(), marks, len(opened.members))
    bits = {n: 8 * each.dtype.itemsize for n, each in tensors.items()}
    found = exponent_scales(vector.views(), bits, sites)
    lost: list[str] = []
    if party.leads and party.agreement.secure.rounding != "stochastic":
        lost = lost_to_rounding(marks, found, bits)
    for name in lost:
        _log.warning("'%s': all values of this site are rounded to zero: other sites' are that much larger", name)
    return Scales(found, opened.salt, lost)


def refuse_another_count(party: Party) -> None:
    """Raise PolicyError, on every rank of the site, if a count of this epoch was stopped here before."""
    stopped = b"."
    if party.leads and party.memory is not None and _stopped(party, party.memory).exists():
        stopped = b"!"
    if party.site.broadcast_bytes(stopped if party.leads else None) == b"!":
        raise PolicyError("a count of exponents of this epoch was stopped before, and none follows it", _HINT)


def check_counts(
    party: Party, totals: Mapping[str, NDArray[Any]], own: Mapping[str, NDArray[Any]], marked: int
) -> None:
    """Stop, on every rank of the site, unless `totals` can be marks of `marked` sites, with `own` of the leader in it.

    int64 [bins] by name. Raises PolicyError.
    """
    wrong = [name for name, counts in totals.items() if not _possible(counts, own[name], marked)]
    stop(party, wrong if party.leads else (), "the counts of exponents are not those of honest sites")


def stop(party: Party, wrong: Iterable[str], what: str) -> None:
    """Raise PolicyError with `what`, on every rank of the site, if the leader finds any tensor `wrong`; for good."""
    word = b"!" if any(True for _ in wrong) else b"."
    if party.leads and word == b"!" and party.memory is not None:
        write_whole(_stopped(party, party.memory), what.encode(), mode=0o600)
    if party.site.broadcast_bytes(word if party.leads else None) == b"!":
        raise PolicyError(what, _HINT)


def _possible(counts: NDArray[Any], own: NDArray[Any], marked: int) -> bool:
    inside = int(counts.min()) >= 0 and int(counts.max()) <= marked
    # Summed as Python integers: lanes could be made to wrap around.
    return inside and sum(counts.tolist()) == marked and bool((counts[own > 0] >= 1).all())


def _stopped(party: Party, memory: Path) -> Path:
    """The file that says so for good, also for a run in another directory."""
    return memory / f"{party.agreement.hash.hex()}.stopped"
