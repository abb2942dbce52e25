"""Arbitrary bytes for every parser, about a second each; `make fuzz` goes on for longer (fuzz.py)."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "fakes")]

from fuzz import mutated, one_input  # noqa: E402
from targets import Target, targets  # noqa: E402

LIMITED = [name for name, target in targets().items() if target.most is not None]


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """Target -> what was said of it, after a second of inputs for each."""
    done = subprocess.run(
        [sys.executable, str(HERE / "fuzz.py"), "--runs", "3000", "--seconds", "1"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    parts = re.split(r"^(good|bad): (.*)$", done.stdout, flags=re.MULTILINE)
    said = {name: word + text for word, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}
    assert sorted(said) == sorted(targets()), done.stderr[-2000:]
    return said


@pytest.mark.parametrize("name", targets())
def test_no_input_makes_a_parser_misbehave(found: dict[str, str], name: str) -> None:
    assert found[name].strip() == "good"


@pytest.mark.parametrize("name", targets())
def test_genuine_inputs_are_taken(name: str) -> None:
    target = targets()[name]
    assert target.seeds
    for seed in target.seeds:
        target.parse(seed)


@pytest.mark.parametrize("name", LIMITED)
def test_what_is_too_long_is_refused_unread(name: str) -> None:
    """One byte more than the longest, and six megabytes, of forms that cost a parser much."""
    target = targets()[name]
    assert target.most is not None
    for length in (target.most + 1, max(6 << 20, target.most + 1)):
        for start, piece, end in ((b'{"a":"', b"0", b'"}'), (b"[", b"[],", b"[]]"), (b"", b"[", b"")):
            data = (start + piece * (length // len(piece)) + end)[:length]
            tracemalloc.start()
            try:
                with pytest.raises(target.refuses):
                    target.parse(data)
                assert tracemalloc.get_traced_memory()[1] < 64 << 10
            finally:
                tracemalloc.stop()


def planted(parse: Any) -> Target:
    return Target("planted", parse, [b"seed"], (ValueError,))


def test_the_harness_finds_what_it_looks_for() -> None:
    def refuse(data: bytes) -> None:
        raise ValueError("no")

    def stumble(data: bytes) -> None:
        if data != b"seed":
            raise KeyError("name")

    def promise(data: bytes) -> None:
        assert data == b"seed"

    def swell(data: bytes) -> None:
        bytes(len(data) << 20)

    one_input(Target("quiet", refuse, [], (ValueError,)), b"anything")
    with pytest.raises(KeyError):
        one_input(planted(stumble), b"other")
    with pytest.raises(AssertionError):
        one_input(planted(promise), b"other")
    with pytest.raises(MemoryError):
        one_input(planted(swell), b"other")
    tracemalloc.stop()


def test_mutations_differ_and_repeat() -> None:
    import random

    once, again = ([mutated(b'{"a":[1,2]}', random.Random(n)) for n in range(50)] for _ in range(2))
    assert once == again
    assert len(set(once)) > 40
