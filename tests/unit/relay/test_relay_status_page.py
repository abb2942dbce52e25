"""The operator's page and what it warns of: from snapshots made by hand, with what a hostile site could say."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from status_fakes import DAY, EMPTY, FEDERATION, snapshot

from fedhpc.relay.status.federation_part import SHOWN
from fedhpc.relay.status.markup import Html, element, joined
from fedhpc.relay.status.notices import notices
from fedhpc.relay.status.status_page import page
from fedhpc.relay.status.style import HEADERS, STYLE
from fedhpc.report.relay_table import console, render
from fedhpc.wire.units import ago, ranges, sites, size, span, took


def shown(found: dict[str, Any], *, paused: bool = False) -> str:
    found["notices"] = [notice.as_json() for notice in notices(found)]
    return page(found, paused=paused)


class Reader(HTMLParser):
    """Tags that are balanced, with their attributes; and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


# --- the page


def test_it_says_where_the_round_stands_and_who_is_awaited() -> None:
    words = Reader(shown(snapshot())).words
    for said in (
        "abababababababab",
        "4 sites, threshold 3, policy sync, vectors on disk. Sum 7 is the last that is done.",
        "Sum 8, train, attempt 1",
        "masked upload for 12 s; at most 1 h",
        "Waits forsite 2",
        "cohort 1-4; U1 1-4; U2 1-4",
        "123 kB",
        "Nothing needs attention.",
        "2 of 512; 0 refused",
        "1.5 MB, 10 bytes",
        "relay.pem ends 2030-01-01 (in 900 d)",
    ):
        assert said in words
    assert "late" not in words, "12 s are no reason to worry"
    assert "U3" not in words


def test_revoked_keys_are_told() -> None:
    assert "The key of site 4 is revoked." in Reader(shown(snapshot(revoked=[4]))).words


def test_an_empty_relay_says_what_to_do_next() -> None:
    words = Reader(shown(copy.deepcopy(EMPTY))).words
    assert "No federations yet" in words
    assert "fedhpc relay admit" in words


def test_it_loads_itself_again_unless_paused() -> None:
    again = [a for tag, a in Reader(shown(snapshot())).tags if a.get("http-equiv") == "refresh"]
    assert [a["content"] for a in again] == ["5"]
    links = {a["href"] for tag, a in Reader(shown(snapshot())).tags if tag == "a"}
    assert "/?paused" in links
    paused = Reader(shown(snapshot(), paused=True))
    assert not [a for tag, a in paused.tags if "http-equiv" in a]
    assert ("a", {"href": "/"}) in paused.tags


@pytest.mark.parametrize("path", ["sums__0__purpose", "times__0__purpose", "times__0__why"])
def test_what_sites_say_is_text(path: str) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=y>' \" &amp;"
    html = shown(snapshot(**{path: evil, "times__0__done": False, "sums__0__sum": 7}))
    reader = Reader(html)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "img", "iframe", "form", "link", "object"})
    assert not [a for _, a in reader.tags if any(key.startswith("on") or key == "style" for key in a)]
    assert evil in reader.words or any(evil in (a.get("title") or "") for _, a in reader.tags)


def test_the_page_can_be_read_aloud() -> None:
    reader = Reader(shown(snapshot()))
    assert ("html", {"lang": "en"}) in reader.tags
    assert all(a.get("scope") in ("col", "row") for tag, a in reader.tags if tag == "th")
    pictures = [a for tag, a in reader.tags if tag == "svg"]
    assert all((a.get("role") == "img" and a.get("aria-label")) or a.get("aria-hidden") == "true" for a in pictures)
    assert "collecting 3.00 s, keys 1.00 s" in {a.get("aria-label") for a in pictures}
    assert [tag for tag, _ in reader.tags].count("caption") == [tag for tag, _ in reader.tags].count("table") == 2


def test_bars_are_as_long_as_the_phases() -> None:
    widths = [a["width"] for tag, a in Reader(shown(snapshot())).tags if tag == "rect" and a.get("x") is not None]
    assert widths == ["75.0", "25.0"]


def test_the_table_of_rounds_is_short_and_begins_with_the_newest() -> None:
    rounds = [FEDERATION["times"][0] | {"sum": r} for r in range(1, 51)]
    words = Reader(shown(snapshot(times=rounds, done=50))).words
    assert f"The last {SHOWN} sums" in words
    assert "31weights" in words
    assert "30weights" not in words
    assert words.index("50weights") < words.index("49weights")


def test_the_browser_may_load_nothing_and_run_nothing() -> None:
    policy = HEADERS["content-security-policy"]
    style = re.search(r"(?s)<style>(.*?)</style>", shown(snapshot()))
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert not re.search(r"https?://", shown(snapshot()))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [(ink, "paper") for ink in ("ink", "soft", "link", "good", "warn")]
    + [("ink", "box"), ("soft", "box"), ("bad", "bad-box"), ("soft", "bad-box"), ("warn", "warn-box")],
)
def test_colours_have_the_contrast_of_wcag_aa(ink: str, paper: str, theme: int) -> None:
    light, dark = re.findall(r"(?s):root \{(.*?)\}", STYLE)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6});", light))
    if theme:
        colours |= dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6});", dark))
    one, other = sorted((luminance(colours[ink]), luminance(colours[paper])))
    assert (other + 0.05) / (one + 0.05) >= 4.5


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_markup_escapes_what_it_did_not_make() -> None:
    inner = element("b", "<", joined("&", Html("<i></i>")))
    assert element("a", inner, href='"x"', class_="k", aria_label=None) == (
        '<a href="&quot;x&quot;" class="k"><b>&lt;&amp;<i></i></b></a>'
    )


# --- what it warns of


def relay(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(EMPTY) | changes


NEEDED = [
    (relay(roster_error="site 3 needs a number"), "bad", "The roster was not read: site 3 needs a number"),
    (relay(certificates=[EMPTY["certificates"][0] | {"left_s": -5}]), "bad", "relay.pem has ended"),
    (relay(certificates=[EMPTY["certificates"][0] | {"left_s": 13 * DAY}]), "warn", "relay.pem ends in 13 d"),
    (relay(disk={"free_bytes": 1 << 26, "reserve_bytes": 1 << 26}), "bad", "The disk of the store is full"),
    (relay(stopping=True), "note", "stopping"),
    (snapshot(quota__bytes=10**13), "note", "The quotas promise"),
    (snapshot(sums__0__bytes=2 * 10**12), "bad", "The disk of the store is full"),
    (
        snapshot(bad_vectors=[{"sum": 5, "attempt": 2, "site": 3}]),
        "bad",
        "Site 3 uploaded another vector than it sig",
    ),
    (snapshot(sums__0__since_s=61.0), "warn", "Sum 8 waits for site 2, for 1 min 1 s (masked upload)."),
    (
        snapshot(sums__0__since_s=61.0, sums__0__late=[2, 3], members__1__seen_s=None),
        "warn",
        "waits for sites 2, 3, for 1 min 1 s (masked upload); site 2 has not been heard of lately.",
    ),
    (
        snapshot(sums__0__phase="ready", sums__0__limit_s=None, sums__0__since_s=3601.0, members__1__seen_s=99.0),
        "note",
        "waits for site 2, for 1 h (collecting); it has not been heard of lately.",
    ),
    (
        snapshot(times__0__why="keys: 2 of 4 sites in time, not 1, 2", times__0__done=False, times__0__sum=8),
        "warn",
        "Sum 8 gave an attempt up (keys: 2 of 4 sites in time, not 1, 2).",
    ),
    (snapshot(needs=[{"site": 4, "attempt": 9, "asked": 0}]), "warn", "Site 4 asks for the present model, and no"),
    (snapshot(members__2__bytes=900_000_000), "warn", "Site 3 stores 900 MB of 1.0 GB that it may."),
    (snapshot(members__2__objects=990), "bad", "Site 3 stores 990 of 1000 objects"),
    (snapshot(members__0__certificate_left_s=2 * DAY), "warn", "The certificate of site 1 ends in 2 d."),
    (snapshot(members__0__certificate_left_s=-1), "warn", "The certificate of site 1 has ended."),
]


@pytest.mark.parametrize(("found", "level", "text"), NEEDED, ids=[case[2][:40] for case in NEEDED])
def test_what_needs_attention_is_said_once_with_a_hint(found: dict[str, Any], level: str, text: str) -> None:
    (notice,) = notices(found)
    assert (notice.level, text in notice.text) == (level, True), notice
    assert notice.hint
    assert notice.text in Reader(shown(found)).words


@pytest.mark.parametrize(
    "found",
    [
        relay(certificates=[EMPTY["certificates"][0] | {"left_s": 15 * DAY}]),
        snapshot(sums__0__since_s=59.0),
        snapshot(sums__0__phase="ready", sums__0__limit_s=None, sums__0__since_s=3000.0),
        snapshot(sums__0__since_s=4000.0, sums__0__late=[]),
        snapshot(times__0__why="keys: 2 of 4 sites in time", times__0__attempts=2),
        snapshot(needs=[{"site": 4, "attempt": 9, "asked": 1}]),
        snapshot(members__2__bytes=790_000_000, members__0__certificate_left_s=None),
    ],
)
def test_what_is_usual_is_not_told(found: dict[str, Any]) -> None:
    assert notices(found) == []


def test_the_worst_comes_first_and_late_is_marked() -> None:
    found = snapshot(sums__0__since_s=61.0, bad_vectors=[{"sum": 5, "attempt": 2, "site": 3}])
    assert [notice.level for notice in notices(found)] == ["bad", "warn"]
    html = shown(found)
    assert html.count('class="late">late<') == 1
    assert 'class="late">bad vector<' in html
    assert "<title>(2) fedhpc relay</title>" in html


# --- the terminal


def printed(found: dict[str, Any], width: int) -> str:
    found.setdefault("notices", [notice.as_json() for notice in notices(found)])
    screen = console()
    screen.width = width
    with screen.capture() as taken:
        screen.print(render(found, width))
    return taken.get()


@pytest.mark.parametrize("width", [80, 130])
def test_the_terminal_says_the_same(width: int) -> None:
    text = printed(snapshot(sums__0__since_s=61.0, sums__0__purpose="[red]\x1b[31mtrain"), width)
    for said in ("fedhpc relay 1.2, running, up for 6 min", "federation abababababababab: 4 sites", "waits for site 2"):
        assert said in text
    assert "[red]\N{REPLACEMENT CHARACTER}[31mtrain" in text, "no markup, no control characters"
    assert ("answers  results" in text) == (width == 130)
    assert all(len(line) <= width for line in text.splitlines())


def test_the_terminal_refuses_what_is_no_status() -> None:
    from fedhpc.errors import PeersError

    for broken in ({"kind": "fedhpc-relay"}, snapshot(members=[{"site": 1}]), snapshot(sums=[7])):
        with pytest.raises(PeersError, match="cannot be read"):
            render(json.loads(json.dumps(broken | {"notices": []})), 80)


# --- amounts


def test_amounts() -> None:
    assert [size(n) for n in (0, 999, 999.6, 1500, 99_950, 123_456, 10**9, 5 * 10**15)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "1.5 kB",
        "100 kB",
        "123 kB",
        "1.0 GB",
        "5000 TB",
    ]
    assert [span(s) for s in (-1, 0.4, 59.4, 59.6, 61, 3599.7, 3600, 7384, 90_000, 31_536_000)] == [
        "0 s",
        "0 s",
        "59 s",
        "1 min",
        "1 min 1 s",
        "1 h",
        "1 h",
        "2 h 3 min",
        "1 d 1 h",
        "365 d",
    ]
    assert [took(s) for s in (0.254, 9.99, 12.34, 59.98, 90, 3600, 200_000)] == [
        "0.25 s",
        "9.99 s",
        "12.3 s",
        "1.0 min",
        "1.5 min",
        "1.0 h",
        "2.3 d",
    ]
    assert [ago(s) for s in (None, 0.2, 5.0)] == ["not yet", "now", "5 s ago"]
    assert [ranges(n) for n in ([], [3], [2, 1], [1, 2, 3, 7], [9, 8, 7, 1])] == [
        "none",
        "3",
        "1, 2",
        "1-3, 7",
        "1, 7-9",
    ]
    assert [sites(n) for n in ([4], [1, 2, 3])] == ["site 4", "sites 1-3"]
