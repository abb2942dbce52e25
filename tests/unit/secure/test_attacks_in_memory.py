"""Every attack of attack_table.py that the machines must stop, on the stage in memory, and some on a machine alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attack_checks import check
from attack_stage import ALL
from attack_table import ATTACKS, Attack
from memory_stage import MemoryStage


@pytest.fixture
def stage() -> Iterator[MemoryStage]:
    made = MemoryStage()
    with made.patches:
        yield made


@pytest.mark.parametrize("attack", [a for a in ATTACKS if "memory" in a.stages], ids=lambda attack: attack.key)
def test_an_attack_in_memory(stage: MemoryStage, attack: Attack) -> None:
    check(stage, attack)


def test_without_a_lie_the_stage_in_memory_gives_the_sum(stage: MemoryStage) -> None:
    stage.start()
    stage.run(1)
    assert [stage.end(u) for u in ALL] == [None] * 4
    assert {stage.got(u) for u in ALL} == {11110}
    assert stage.sets(1) == {ALL}
