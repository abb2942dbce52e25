"""The cases of `make bench`: what they take together, and what does not fit."""

from __future__ import annotations

from benchmarks.measure import CASES, too_large

HERE = {"memory_gib": 24}


def test_make_bench_should_fit_into_ten_minutes_and_has_what_it_must() -> None:
    quick = {name: case for name, case in CASES.items() if not case.slow}
    assert sum(case.guess_s for case in quick.values()) <= 600  # guesses: what it takes is in the results
    for sites in (2, 4, 8, 16, 32, 64):
        assert any(f"--sites {sites} --params 1000000 " in case.words for case in quick.values())
    assert "sum_100M" in quick


def test_every_median_has_five_repeats() -> None:
    for case in CASES.values():
        words = case.words.split()
        if "--repeat" in words:
            assert int(words[words.index("--repeat") + 1]) >= 5
    assert "--repeat 9" in CASES["round"].words


def test_what_is_above_a_third_of_the_memory_is_left_out() -> None:
    left_out = dict(too_large(HERE))
    assert left_out == {CASES["sum_1G"].command: "about 15 GiB of 24"}
    smaller = dict(too_large({"memory_gib": 2}))
    assert CASES["sum_100M"].command in smaller
    assert CASES["sum_1M"].command not in smaller
    assert too_large({"memory_gib": 512}) == []
