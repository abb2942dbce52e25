"""What the operator should look at, found in a snapshot: pure functions, the worst first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedhpc.wire.kinds import PHASES
from fedhpc.wire.units import sites, size, span

LEVELS = ("bad", "warn", "note")
_DAY_S = 86400
_RELAY_WARN_S, _SITE_WARN_S = 14 * _DAY_S, 3 * _DAY_S  # the relay's certificate lives for years, a site's a month
_LATE_S = 60.0
_SLOW_START_S = 3600.0  # sites train before they are ready


@dataclass(frozen=True)
class Notice:
    """One thing to look at. `where`: the federation's first 16 digits, or "" for the relay itself."""

    level: str
    where: str
    text: str
    hint: str

    def as_json(self) -> dict[str, str]:
        """As /status.json has it."""
        return {"level": self.level, "where": self.where, "text": self.text, "hint": self.hint}


def notices(snapshot: dict[str, Any]) -> list[Notice]:
    """All of a snapshot."""
    found = list(_of_relay(snapshot))
    for federation in snapshot["federations"]:
        found += notices_of_rounds(federation)
        for member in federation["members"]:
            found += _of_member(federation["config"][:16], federation, member)
    return sorted(found, key=lambda notice: LEVELS.index(notice.level))


def notices_of_rounds(federation: dict[str, Any]) -> list[Notice]:
    """What sites may know too: late sites, attempts given up, bad vectors, sites that nobody helps."""
    return list(_of_rounds(federation))


def is_late(open_round: dict[str, Any]) -> bool:
    """Whether a round has waited for its late sites for longer than is usual."""
    patience = _SLOW_START_S if open_round["phase"] == "ready" else _LATE_S
    return bool(open_round["late"]) and open_round["since_s"] >= patience


def _of_relay(snapshot: dict[str, Any]) -> Iterator[Notice]:
    if snapshot["roster_error"]:
        yield Notice("bad", "", f"The roster was not read: {snapshot['roster_error']}", "The old one stays in use.")
    for certificate in snapshot["certificates"]:
        left, what = certificate["left_s"], f"The {certificate['role']} certificate {certificate['file']}"
        if left < _RELAY_WARN_S:
            level, ends = ("bad", "has ended") if left <= 0 else ("warn", f"ends in {span(left)}")
            yield Notice(level, "", f"{what} {ends}.", "Renew it over the same key, then restart the relay.")
    disk = snapshot["disk"]
    free = max(0, disk["free_bytes"] - disk["reserve_bytes"])
    promised = sum(max(0, f["quota"]["bytes"] - f["stored"]["bytes"]) for f in snapshot["federations"])
    largest = max((r["bytes"] for f in snapshot["federations"] for r in f["sums"]), default=0)
    if free <= largest:
        hint = "Uploads are refused (507) until there is room. Make the disk larger, or drop a federation."
        yield Notice("bad", "", f"The disk of the store is full: {size(free)} can be used.", hint)
    elif free < promised:
        text = f"The quotas promise {size(promised)} more than is stored; the disk has {size(free)}."
        yield Notice("note", "", text, "Make the disk larger, or admit the federations with smaller quotas.")
    if snapshot["stopping"]:
        yield Notice("note", "", "The relay is stopping.", "Requests that run may end first.")


def _of_rounds(federation: dict[str, Any]) -> Iterator[Notice]:
    where = federation["config"][:16]
    for bad in federation["bad_vectors"]:
        which = f"sum {bad['sum']}, attempt {bad['attempt']}"
        text = f"Site {bad['site']} uploaded another vector than it signed ({which})."
        hint = "Its memory, disk or transfer is damaged, or it is dishonest; or this disk is damaged. Tell the site."
        yield Notice("bad", where, text, hint)
    heard = {member["site"]: member["seen_s"] for member in federation["members"]}
    whys = {times["sum"]: times["why"] for times in federation["times"] if not times["done"]}
    for open_round in federation["sums"]:
        yield from _of_round(where, open_round, heard)
        if whys.get(open_round["sum"]):
            text = f"Sum {open_round['sum']} gave an attempt up ({whys[open_round['sum']]})."
            yield Notice("warn", where, text, "Another attempt follows by itself.")
    for need in federation["needs"]:
        if not need["asked"]:
            text = f"Site {need['site']} asks for the present model, and no site that could answer is connected."
            yield Notice("warn", where, text, "It goes on when another site runs.")


def _of_round(where: str, open_round: dict[str, Any], heard: dict[int, float | None]) -> Iterator[Notice]:
    if not is_late(open_round):
        return
    collecting, one = open_round["phase"] == "ready", len(open_round["late"]) == 1
    since = span(open_round["since_s"])
    text = f"Sum {open_round['sum']} waits for {sites(open_round['late'])}, for {since}"
    silent = [u for u in open_round["late"] if (at := heard.get(u)) is None or at > _LATE_S]
    who = "it" if one else sites(silent)
    away = f"; {who} {'has' if len(silent) == 1 else 'have'} not been heard of lately" if silent else ""
    limit = open_round["limit_s"]
    hint = "Sites train before they are ready." if collecting else "The phase has no deadline."
    if limit is not None:
        left = max(0.0, limit - open_round["since_s"])
        hint = f"The sum goes on without, or begins anew, in {span(left)}."
    yield Notice("note" if collecting else "warn", where, f"{text} ({PHASES[open_round['phase']]}){away}.", hint)


def _of_member(where: str, federation: dict[str, Any], member: dict[str, Any]) -> Iterator[Notice]:
    share = federation["share"]
    for what in ("bytes", "objects"):
        used, most = member[what], share[what]
        if used > 0.8 * most:
            amount = f"{size(used)} of {size(most)}" if what == "bytes" else f"{used} of {most} objects"
            level = "bad" if used > 0.95 * most else "warn"
            hint = "Admit the federation with a larger quota; old rounds are removed by themselves."
            yield Notice(level, where, f"Site {member['site']} stores {amount} that it may.", hint)
    left = member["certificate_left_s"]
    if left is not None and left < _SITE_WARN_S:
        ends = f"ends in {span(left)}" if left > 0 else "has ended"
        text = f"The certificate of site {member['site']} {ends}."
        yield Notice("warn", where, text, "The site asks for another with `fedhpc site request`.")
