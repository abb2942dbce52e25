"""docs/relay-openapi.yaml says what the relay does: same problems, same patterns, valid references."""

from __future__ import annotations

import re
from pathlib import Path

from fedhpc.relay import problems
from fedhpc.wire import object_names as objects

TEXT = (Path(__file__).parents[2] / "docs" / "relay-openapi.yaml").read_text()


def test_the_document_lists_exactly_the_problems_of_the_relay() -> None:
    assert set(re.findall(r"urn:fedhpc:relay:([a-z-]+)", TEXT)) == set(problems._KINDS)


def test_names_have_the_same_pattern() -> None:
    given = re.search(r'"\^(\[A-Z\].*)\$"', TEXT)
    assert given is not None
    pattern = re.compile(given[1])
    for text in ("M1/3", "Y", "M4r", "M3v/999", "STATE/1/2", "m1", "M1/0", "M1/01", "M1/1/2/3", "M" * 17, "M-1", ""):
        assert bool(pattern.fullmatch(text)) == bool(objects._NAME.fullmatch(text)), text


def test_references_have_targets() -> None:
    for kind, target in re.findall(r"#/components/(\w+)/(\w+)", TEXT):
        section = TEXT.split(f"\n  {kind}:\n", 1)[1]
        assert re.search(rf"^    {target}:", section, re.M), (kind, target)
