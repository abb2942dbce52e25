"""The operator's page, made from a snapshot (snapshot.py): one HTML file without scripts that loads nothing.

Pure functions. Everything that came from a site is text to markup.py, which escapes it.
"""

from __future__ import annotations

from typing import Any

from fedhpc.relay.status.federation_part import federation_section
from fedhpc.relay.status.markup import Html, element, joined
from fedhpc.relay.status.style import STYLE
from fedhpc.wire.units import size, span

REFRESH_S = 5
PAUSED = "/?paused"
_WORDS = {"bad": "Problem", "warn": "Look at this", "note": "Note"}


def page(snapshot: dict[str, Any], *, paused: bool) -> str:
    """The whole page; `paused`: it does not load itself again."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        *([] if paused else [element("meta", http_equiv="refresh", content=REFRESH_S)]),
        element("title", _title(snapshot)),
        element("style", Html(STYLE)),
    ]
    federations = [federation_section(federation) for federation in snapshot["federations"]]
    main = element("main", _notices(snapshot), *(federations or [_nobody()]), _relay(snapshot))
    body = element("body", _header(snapshot, paused), main)
    return "<!DOCTYPE html>\n" + element("html", element("head", *head), body, lang="en") + "\n"


def _title(snapshot: dict[str, Any]) -> str:
    bad = sum(notice["level"] != "note" for notice in snapshot["notices"])
    return f"({bad}) fedhpc relay" if bad else "fedhpc relay"


def _header(snapshot: dict[str, Any], paused: bool) -> Html:
    state = element("strong", "stopping") if snapshot["stopping"] else element("span", "running", class_="good")
    time = snapshot["time"].replace("T", " ").removesuffix("+00:00") + " UTC"
    if paused:
        again = joined("Paused. ", element("a", "Go on", href="/"))
    else:
        again = joined(f"Loads itself again every {REFRESH_S} s. ", element("a", "Pause", href=PAUSED))
    return element(
        "header",
        element("h1", "fedhpc relay"),
        element("p", state, f", up for {span(snapshot['uptime_s'])}"),
        element("p", "As of ", element("time", time, datetime=snapshot["time"]), class_="soft"),
        element("p", again, class_="soft"),
    )


def _notices(snapshot: dict[str, Any]) -> Html:
    if not snapshot["notices"]:
        return element("p", element("span", "Nothing needs attention.", class_="good"))
    rows = []
    for notice in snapshot["notices"]:
        where = [" in ", element("code", notice["where"])] if notice["where"] else []
        what = [element("strong", _WORDS[notice["level"]]), *where, ": ", notice["text"]]
        rows.append(element("li", *what, element("span", _hint(notice["hint"])), class_=notice["level"]))
    return element("ul", *rows, class_="notices", aria_label="What needs attention")


def _hint(text: str) -> Html:
    """`commands` in their own type."""
    return joined(*(element("code", part) if i % 2 else part for i, part in enumerate(text.split("`"))))


def _nobody() -> Html:
    how = element("code", "fedhpc relay admit federation.toml --relay relay.toml")
    return element(
        "section",
        element("h2", "No federations yet"),
        element("p", "Let one in on this machine; the relay serves it a moment later: ", how),
    )


def _relay(snapshot: dict[str, Any]) -> Html:
    connections, disk = snapshot["connections"], snapshot["disk"]
    refused = f"{connections['refused']} refused, {connections['handshakes_failed']} failed handshakes"
    facts = [
        ("Version", snapshot["version"]),
        ("Started", snapshot["started"].replace("T", " ").removesuffix("+00:00") + " UTC"),
        ("Connections", f"{connections['open']} of {connections['most']}; {refused}"),
        ("Received, sent", f"{size(snapshot['received_bytes'])}, {size(snapshot['sent_bytes'])}"),
        ("Memory", f"{size(snapshot['memory_bytes'])}, at most {size(snapshot['peak_memory_bytes'])}"),
        ("Disk", f"{size(disk['free_bytes'])} free, {size(disk['reserve_bytes'])} of it kept free"),
        *((_certificate_name(c), _certificate(c)) for c in snapshot["certificates"]),
    ]
    rows = [joined(element("dt", name), element("dd", value)) for name, value in facts]
    links = joined(
        "For programs: ",
        element("a", "/status.json", href="/status.json"),
        ", ",
        element("a", "/metrics", href="/metrics"),
        ", ",
        element("a", "/healthz", href="/healthz"),
    )
    return element("section", element("h2", "This relay"), element("dl", *rows), element("p", links, class_="soft"))


def _certificate_name(certificate: dict[str, Any]) -> str:
    return f"{certificate['role'].capitalize()} certificate"


def _certificate(certificate: dict[str, Any]) -> str:
    left = f"in {span(certificate['left_s'])}" if certificate["left_s"] > 0 else "over"
    return f"{certificate['file']} ends {certificate['ends'][:10]} ({left})"
