"""The part of the status page about one federation: its open rounds, its sites, the times of its last rounds."""

from __future__ import annotations

from typing import Any

from fedhpc.relay.status.markup import Html, element, joined
from fedhpc.relay.status.notices import is_late
from fedhpc.wire.kinds import PHASES
from fedhpc.wire.units import ago, kept, ranges, sites, size, span, took

SHOWN = 20  # rounds in the table of times


def federation_section(federation: dict[str, Any]) -> Html:
    """Everything about one federation."""
    name = federation["config"][:16]
    done, policy = federation["done"], federation["policy"]
    about = (
        f"{federation['sites']} sites, threshold {federation['threshold']}, policy {policy}, "
        f"vectors {kept(federation['durable'])}. "
        f"{'No sum is done yet.' if done == 0 else f'Sum {done} is the last that is done.'}"
    )
    if federation["revoked"]:
        about += f" The key of {sites(federation['revoked'])} is revoked."
    return element(
        "section",
        element("h2", "Federation ", element("code", name, title=federation["config"]), id=f"f{name}"),
        element("p", about),
        *(_open_round(open_round) for open_round in federation["sums"]),
        *([] if federation["sums"] else [element("p", "No site is ready for a further sum.", class_="soft")]),
        _members(federation),
        _needs(federation),
        _times(federation),
    )


def _open_round(open_round: dict[str, Any]) -> Html:
    phase = PHASES[open_round["phase"]]
    attempt = f", attempt {open_round['attempt']}" if open_round["attempt"] else ""
    since = f"{phase} for {span(open_round['since_s'])}"
    if open_round["limit_s"] is not None:
        since += f"; at most {span(open_round['limit_s'])}"
    facts: list[tuple[str, str]] = [("Phase", since)]
    if open_round["late"]:
        class_ = "late" if is_late(open_round) else None
        facts.append(("Waits for", element("span", sites(open_round["late"]), class_=class_)))
    facts.append(("Ready", sites(open_round["ready"])))
    if open_round["cohort"]:
        steps = [f"cohort {ranges(open_round['cohort'])}"]
        steps += [f"{name.upper()} {ranges(open_round[name])}" for name in ("u1", "u2", "u3") if open_round[name]]
        facts.append(("Who takes part", "; ".join(steps)))
    facts.append(("Each vector", size(open_round["bytes"])))
    rows = [joined(element("dt", name), element("dd", value)) for name, value in facts]
    title = joined(f"Sum {open_round['sum']}, ", element("em", open_round["purpose"]), attempt)
    return element("div", element("strong", title), element("dl", *rows), class_="round")


def _members(federation: dict[str, Any]) -> Html:
    rows = [_member(member, federation) for member in federation["members"]]
    stored, quota = federation["stored"], federation["quota"]
    total = (
        f"{size(stored['bytes'])} in {stored['objects']} objects are stored, {size(federation['relay_bytes'])} of it "
        f"by the relay itself. The quota for the sites is {size(quota['bytes'])}: "
        f"each may store {size(federation['share']['bytes'])}."
    )
    heads = [
        element("th", "Site", scope="col"),
        element("th", "Last heard", scope="col"),
        element("th", "State", scope="col"),
        element("th", "Stored", scope="col"),
        element("th", "Objects", scope="col", class_="number spare"),
        element("th", "Certificate", scope="col", class_="spare"),
    ]
    return joined(_table("Sites", heads, rows), element("p", total, class_="soft"))


def _member(member: dict[str, Any], federation: dict[str, Any]) -> Html:
    parts = [part for state in _states(member["site"], federation) for part in (", ", state)][1:]
    left = member["certificate_left_s"]
    ends = "not seen yet" if left is None else f"{span(left)} left" if left > 0 else "has ended"
    share = federation["share"]["bytes"]
    return element(
        "tr",
        element("th", str(member["site"]), scope="row"),
        element("td", ago(member["seen_s"])),
        element("td", *(parts or ["-"]), class_="text"),
        element("td", size(member["bytes"]), _used(member["bytes"], share)),
        element("td", f"{member['objects']}", _unfinished(member["uploads"]), class_="number spare"),
        element("td", ends, class_="spare"),
    )


def _states(site: int, federation: dict[str, Any]) -> list[str]:
    states: list[str] = []
    if any(report["site"] == site for report in federation["bad_vectors"]):
        states.append(element("span", "bad vector", class_="late"))
    awaited = [open_round for open_round in federation["sums"] if site in open_round["late"]]
    if any(map(is_late, awaited)):
        states.append(element("span", "late", class_="late"))
    elif awaited:
        states.append("awaited")
    if any(need["site"] == site for need in federation["needs"]):
        states.append("catches up")
    if any(site in open_round["ready"] for open_round in federation["sums"]):
        states.append("ready")
    return states


def _unfinished(uploads: int) -> str:
    return f" ({uploads} unfinished)" if uploads else ""


def _used(used: int, most: int) -> Html:
    share = min(1.0, used / most) if most else 1.0
    bar = element("rect", width=round(100 * share, 2), height=10, class_="full" if share > 0.8 else "store")
    rest = element("rect", width=100, height=10, class_="rest")
    label = f"{100 * share:.0f} percent of its share"
    return _svg(label, rest, bar, class_="bar store-bar")


def _needs(federation: dict[str, Any]) -> Html:
    if not federation["needs"]:
        return joined()
    rows = []
    for need in federation["needs"]:
        asked = f"site {need['asked']} was asked" if need["asked"] else "nobody can be asked now"
        rows.append(element("li", f"Site {need['site']} asks for the present model; {asked}."))
    return joined(element("h3", "Catching up"), element("ul", *rows))


def _times(federation: dict[str, Any]) -> Html:
    shown = federation["times"][-SHOWN:][::-1]
    if not shown:
        return joined()
    heads = [
        element("th", "Sum", scope="col"),
        element("th", "What", scope="col"),
        element("th", "Result", scope="col", class_="spare"),
        element("th", "Took", scope="col", class_="number"),
        element("th", "Time split", scope="col"),
        *(element("th", name, scope="col", class_="number spare") for name in PHASES.values()),
    ]
    legend = [element("li", _swatch(phase), name) for phase, name in PHASES.items()]
    table = _table(f"The last {len(shown)} sums since the relay started", heads, [_time_row(t) for t in shown])
    return joined(table, element("ul", *legend, class_="legend", aria_label="Colours of the phases"))


def _time_row(times: dict[str, Any]) -> Html:
    seconds = times["seconds"]
    total = sum(seconds.values())
    result = f"{len(times['sites'])} sites" if times["done"] else "open"
    if times["attempts"] > 1:
        result += f", {times['attempts']} attempts"
    return element(
        "tr",
        element("th", str(times["sum"]), scope="row"),
        element("td", times["purpose"], class_="text"),
        element("td", result, title=times["why"] or None, class_="spare"),
        element("td", took(total), class_="number"),
        element("td", _split(seconds, total)),
        *(element("td", took(seconds[p]) if p in seconds else "-", class_="number spare") for p in PHASES),
    )


def _split(seconds: dict[str, float], total: float) -> Html:
    at, rects = 0.0, []
    for phase, name in PHASES.items():
        if phase not in seconds or not total:
            continue
        width = 100 * seconds[phase] / total
        title = element("title", f"{name} {took(seconds[phase])}")
        rects.append(element("rect", title, x=round(at, 3), width=round(width, 3), height=10, class_=phase))
        at += width
    label = ", ".join(f"{PHASES[p]} {took(s)}" for p, s in seconds.items())
    return _svg(label, *rects, class_="bar")


def _swatch(phase: str) -> Html:
    box = element("rect", width=10, height=10, class_=phase)
    return element("svg", box, viewBox="0 0 10 10", aria_hidden="true")


def _svg(label: str, *children: Html, class_: str) -> Html:
    about = {"role": "img", "aria_label": label, "class_": class_}
    return element("svg", *children, viewBox="0 0 100 10", preserveAspectRatio="none", **about)


def _table(caption: str, heads: list[Html], rows: list[Html]) -> Html:
    """A table that scrolls by itself, with the keyboard too, where the window is narrow."""
    parts = [element("caption", caption), element("thead", element("tr", *heads)), element("tbody", *rows)]
    return element("div", element("table", *parts), class_="wide", tabindex=0, role="region", aria_label=caption)
