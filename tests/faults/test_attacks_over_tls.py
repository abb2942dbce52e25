"""Every attack of attack_table.py that is played over real TLS, what such a relay has of a vector, and the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attacks_by_relay
import numpy as np
import pytest
from attack_checks import TOTAL, check
from attack_stage import ALL
from attack_table import ATTACKS, ELSEWHERE, Attack, rows
from attacks_by_relay import OTHER, about, fields
from harness import PATIENCE, ROOT
from relayed_peel import attempt_file, encoded, layout_of, without_edges, without_self
from tls_stage import SECTIONS, TlsStage, four_sites, stage_of

from fedhpc.app.federation import Federation
from fedhpc.enrolment.one_machine import Enrolled
from fedhpc.secure.salt import SALT_BYTES
from fedhpc.secure.transcript import parse_canon
from fedhpc.wire.object_names import ObjectName

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    return four_sites(tmp_path_factory.mktemp("four"))


@pytest.fixture
def stage(enrolled: Enrolled, tmp_path: Path) -> Iterator[TlsStage]:
    with stage_of(enrolled, tmp_path) as made:
        yield made


@pytest.mark.parametrize("attack", [a for a in ATTACKS if "TLS" in a.stages], ids=lambda attack: attack.key)
def test_an_attack_over_tls(stage: TlsStage, attack: Attack) -> None:
    check(stage, attack)


def test_without_a_lie_the_stage_over_tls_gives_the_sum(stage: TlsStage) -> None:
    """The attacks fail for what they do, and not because the stage is broken."""
    stage.start()
    stage.run(1)
    assert [stage.end(u) for u in ALL] == [None] * 4
    assert {stage.got(u) for u in ALL} == {TOTAL}
    assert stage.sets(1) == {ALL}


def test_sites_that_refused_a_second_set_still_open_the_first(stage: TlsStage) -> None:
    """Once the false attempt is given up and the relay proposes the set that they are bound to, they start again."""
    attacks_by_relay.second_set(stage)
    for u in (1, 2, 3):
        assert stage.end(u) is not None
    stage.give_up(2)
    stage.start(1, 2, 3)
    stage.run(3)
    for u in ALL:
        assert stage.end(u) is None
        assert stage.got(u) == TOTAL


# --- attacks on rounds that the relay's own coordinator runs


@pytest.fixture
def coordinated(tmp_path: Path) -> Iterator[TlsStage]:
    """The relay proposes and closes sets itself, and soon goes on without a site that is late."""
    late = f"answer_s = {3.0 * PATIENCE}\nupload_s = {5.0 * PATIENCE}"
    sections = SECTIONS.replace('"sync"', f'"buffered"\n{late}')
    with stage_of(four_sites(tmp_path / "four", sections), tmp_path, coordinator=True) as made:
        yield made


def test_the_others_go_on_without_a_site_that_was_lied_to(coordinated: TlsStage) -> None:
    coordinated.lie(about("1/M0", fields(state=OTHER), [2]))

    def first(fed: Federation) -> None:
        """It is proposed with the others."""
        coordinated.wait(0, "READY", [2])

    coordinated.start(spoil=dict.fromkeys((1, 3, 4), first))
    assert "another state than" in str(coordinated.end(2))
    for u in (1, 3, 4):
        assert coordinated.end(u) is None
        assert coordinated.got(u) == TOTAL - 10**2
    assert coordinated.cohorts(2) == []


def test_messages_withheld_from_all_cost_an_attempt(coordinated: TlsStage) -> None:
    """Every M4 is withheld from all others: nobody answers, the attempt is given up, the next one is exact."""

    def lie(site: int, what: str, truth: bytes) -> bytes | None:
        return None if what.startswith("1/M4/") and what != f"1/M4/{site}" else truth

    coordinated.lie(lie)
    coordinated.start()
    for u in ALL:
        assert coordinated.end(u) is None
        assert coordinated.got(u) == TOTAL
        assert coordinated.sets(u) == {ALL}
        assert "1/M5" not in coordinated.sent(u)
        assert "2/M5" in coordinated.sent(u)


# --- what the relay has of a vector


LANES = 200_000
DRAWN = {u: np.random.default_rng(u).uniform(-8, 8, LANES) for u in ALL}
FLOATS: dict[str, Any] = {"lanes": LANES, "values": DRAWN, "kind": np.float64}


def held(stage: TlsStage, name: str) -> bytes:
    return stage.store.path(ObjectName(stage.config, 1, 1, name)).read_bytes()


def test_a_late_vector_is_hidden_by_its_self_mask_alone(stage: TlsStage) -> None:
    """Site 4 was called lost and its mask key opened, and the relay kept its vector: all other masks are taken off."""
    assert attacks_by_relay.late_vector(stage, total=sum(DRAWN[u] for u in (1, 2, 3)).max(), **FLOATS) == (4,)
    assert "cannot be reached" in str(stage.end(4))
    assert stage.cohorts(4) == [()]
    publics = {u: bytes.fromhex(parse_canon(held(stage, f"M1/{u}"))["body"]["mask"]) for u in ALL}
    keys = attempt_file(stage.runs / "s4" / "attempts" / "round-1.attempt")
    values = {"n": DRAWN[4]}
    layout = layout_of(values, 8.0, 4)
    rest = without_edges(held(stage, "M3v/4"), layout, 4, keys, publics)
    plain = encoded(values, layout, 4)
    same = np.frombuffer(rest, np.uint8) == np.frombuffer(plain, np.uint8)
    assert same.mean() < 1 / 200  # as two unrelated strings of bytes
    end = layout.payload_bytes
    assert without_self(rest, layout, 4, keys)[:end] == plain[:end]


def test_masked_vectors_look_uniform_on_the_relays_disk(stage: TlsStage) -> None:
    """χ² of the bytes of all vectors; and none is another's repeat."""
    stage.start(**FLOATS)
    stage.run(1)
    found = [np.frombuffer(held(stage, f"M3v/{u}"), np.uint8) for u in ALL]
    for data in found:
        assert data.size == 8 * LANES + SALT_BYTES
        mean = data.size / 256
        assert ((np.bincount(data, minlength=256) - mean) ** 2 / mean).sum() < 255 + 8 * np.sqrt(2 * 255)
    for i, data in enumerate(found):
        assert all((data == other).mean() < 1 / 200 for other in found[:i])


# --- the table


def test_every_attack_of_the_list_is_somewhere() -> None:
    keys = {a.key for a in ATTACKS}
    assert len(keys) == len(ATTACKS)
    for attack in ATTACKS:
        assert attack.stages in (("memory", "TLS"), ("memory",), ("TLS",))
        played = re.fullmatch(r"memory: as `(.*)` over TLS", attack.only)
        assert played is None or played[1] in {a.key for a in ATTACKS if "TLS" in a.stages}, attack.key
    numbers = {n for row in (*ATTACKS, *ELSEWHERE) for n in row.number.split(", ")}
    assert numbers == {*map(str, range(1, 16)), "P"}
    for row in ELSEWHERE:
        if row.test == "not built":
            continue
        file, _, name = row.test.partition("::")
        source = (ROOT / "tests" / file).read_text()
        assert re.search(rf"^def {name or 'test_'}", source, re.MULTILINE), row.test


def test_the_document_has_the_table_as_it_is_tested() -> None:
    lines = (ROOT / "docs" / "security.md").read_text().splitlines()
    table = [line for line in lines[lines.index(rows()[0]) :] if line.startswith("|")][: len(rows())]
    assert table == rows(), "python tests/attacks/attack_table.py prints the table"
