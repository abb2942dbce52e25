"""Prints a relay's status in a terminal, once or every 2 s; what the relay sent is plain text, never markup."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedhpc.app.logs import printable
from fedhpc.errors import PeersError
from fedhpc.relay.status.notices import Notice, is_late, notices_of_rounds
from fedhpc.wire.kinds import PHASES
from fedhpc.wire.units import ago, kept, ranges, sites, size, span, took

EVERY_S = 2.0
_STYLES = {"bad": "bold red", "warn": "yellow", "note": "cyan"}
_SHOWN = 8  # rounds
_WIDE = 110  # columns, from which every phase has one


def show(ask: Callable[[], dict[str, Any]], *, as_json: bool, watch: bool) -> None:
    """Print what `ask` says. With `watch` until interrupted, also while the relay is away. Raises what `ask` raises."""
    first = ask()
    if as_json:
        print(json.dumps(first), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for found in _again(ask) if watch else ():
                line = found if isinstance(found, dict) else {"error": found.what}
                print(json.dumps(line), flush=True)
        return
    screen = console()
    if not watch:
        screen.print(render(first, screen.width))
        return
    shown: RenderableType = render(first, screen.width)
    with contextlib.suppress(KeyboardInterrupt), Live(shown, console=screen, auto_refresh=False) as live:
        for found in _again(ask):
            if isinstance(found, dict):
                shown = render(found, screen.width)
            away = [] if isinstance(found, dict) else [Text(found.lines(), "bold red")]
            live.update(Group(*away, shown), refresh=True)


def _again(ask: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any] | PeersError]:
    while True:
        time.sleep(EVERY_S)
        try:
            yield ask()
        except PeersError as error:
            yield error


def console() -> Console:
    """Where the status is printed."""
    return Console(markup=False, highlight=False, emoji=False)


def render(found: dict[str, Any], width: int) -> RenderableType:
    """The answer of an admin port, or of a relay to a site (relay_status.py). Raises PeersError for other fields."""
    try:
        parts = list(_of_federation(found, width) if "config" in found else _of_relay(found, width))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise PeersError(f"the relay's status cannot be read: {error!r:.80}", "it may have another version") from None
    return Group(*parts)


def _of_relay(found: dict[str, Any], width: int) -> Iterator[RenderableType]:
    connections = found["connections"]
    state = Text("stopping", "bold red") if found["stopping"] else Text("running", "green")
    yield _line(
        "fedhpc relay ",
        printable(found["version"]),
        ", ",
        state,
        f", up for {span(found['uptime_s'])}, {connections['open']} connections, ",
        f"{size(found['memory_bytes'])} of memory, received {size(found['received_bytes'])}, ",
        f"sent {size(found['sent_bytes'])}, disk {size(found['disk']['free_bytes'])} free",
    )
    for certificate in found["certificates"]:
        yield _line(f"{printable(certificate['role'])} certificate ends {printable(certificate['ends'])[:10]}")
    for notice in found["notices"]:
        yield _notice(Notice(notice["level"], notice["where"], notice["text"], notice["hint"]))
    if not found["federations"]:
        yield _line("no federations yet: `fedhpc relay admit`")
    for federation in found["federations"]:
        yield Text()
        yield from _of_federation(federation, width)


def _of_federation(federation: dict[str, Any], width: int) -> Iterator[RenderableType]:
    name = f"{printable(federation['name'])} " if "name" in federation else ""
    vectors = f", vectors {kept(federation['durable'])}" if "durable" in federation else ""  # sites are not told
    yield _line(
        Text(f"federation {name}{printable(federation['config'])[:16]}", "bold"),
        f": {federation['sites']} sites, threshold {federation['threshold']}, {printable(federation['policy'])}"
        f"{vectors}; " + (f"sum {federation['done']} is done" if federation["done"] else "no sum is done yet"),
    )
    for open_round in federation["sums"]:
        yield from _open_round(open_round)
    if "name" in federation:  # a site's view; the admin port says them all at the top
        for notice in notices_of_rounds(federation):
            yield _notice(notice)
    yield Text()
    yield _members(federation)
    if federation["times"]:
        yield Text()
        yield _times(federation["times"][-_SHOWN:][::-1], all_phases=width >= _WIDE)


def _open_round(open_round: dict[str, Any]) -> Iterator[Text]:
    attempt = f", attempt {open_round['attempt']}" if open_round["attempt"] else ""
    yield _line(
        f"sum {open_round['sum']} ({printable(open_round['purpose'])}{attempt}): "
        f"{PHASES[open_round['phase']]} for {span(open_round['since_s'])}",
        "" if open_round["limit_s"] is None else f" of at most {span(open_round['limit_s'])}",
        f", {size(open_round['bytes'])} each",
    )
    steps = [f"ready {ranges(open_round['ready'])}"]
    steps += [f"{n.upper() if n[0] == 'u' else n} {ranges(open_round[n])}" for n in _SETS if open_round[n]]
    yield _line("  ", "; ".join(steps))
    if open_round["late"]:
        yield Text(f"  waits for {sites(open_round['late'])}", "yellow" if is_late(open_round) else "")


_SETS = ("cohort", "u1", "u2", "u3")


def _members(federation: dict[str, Any]) -> Table:
    """A row per site. The operator also sees what it stores and how long its certificate lives."""
    operator = "share" in federation
    table = Table("site", "last heard", "state", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    if operator:
        table.add_column(f"stored, of {size(federation['share']['bytes'])}", justify="right")
        table.add_column("objects", justify="right")
        table.add_column("certificate")
    for member in federation["members"]:
        name = f"{member['site']} {printable(member['name'])}" if "name" in member else str(member["site"])
        row: list[RenderableType] = [Text(name), Text(ago(member["seen_s"])), _state(member["site"], federation)]
        if operator:
            left = member["certificate_left_s"]
            ends = "not seen yet" if left is None else f"{span(left)} left" if left > 0 else "has ended"
            row += [Text(size(member["bytes"])), Text(str(member["objects"])), Text(ends)]
        table.add_row(*row)
    return table


def _state(site: int, federation: dict[str, Any]) -> Text:
    rounds = federation["sums"]
    words = []
    if any(report["site"] == site for report in federation["bad_vectors"]):
        words.append(Text("bad vector", "red"))
    if any(site in r["late"] and is_late(r) for r in rounds):
        words.append(Text("late", "yellow"))
    elif any(site in r["late"] for r in rounds):
        words.append(Text("awaited"))
    if any(need["site"] == site for need in federation["needs"]):
        words.append(Text("catches up"))
    if any(site in r["ready"] for r in rounds):
        words.append(Text("ready"))
    return Text(", ").join(words) if words else Text("-")


def _times(rounds: list[dict[str, Any]], *, all_phases: bool) -> Table:
    table = Table("sum", "what", "sites", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("took", justify="right")
    for name in PHASES.values() if all_phases else ():
        table.add_column(name, justify="right")
    if not all_phases:
        table.add_column("most of it")
    for times in rounds:
        seconds = times["seconds"]
        done = str(len(times["sites"])) if times["done"] else "open"
        longest = max(seconds, key=lambda phase: seconds[phase])
        split = [f"{PHASES[longest]} {took(seconds[longest])}"]
        if all_phases:
            split = [took(seconds[phase]) if phase in seconds else "-" for phase in PHASES]
        cells = [str(times["sum"]), printable(times["purpose"]), done, took(sum(seconds.values())), *split]
        table.add_row(*map(Text, cells))
    return table


def _notice(notice: Notice) -> Text:
    where = f"{printable(notice.where)[:16]}: " if notice.where else ""
    word = {"bad": "problem", "warn": "warning", "note": "note"}[notice.level]
    return _line(
        Text(f"{word}: ", _STYLES[notice.level]), where, printable(notice.text), f"\n  {printable(notice.hint)}"
    )


def _line(*parts: str | Text) -> Text:
    return Text.assemble(*parts)
