"""Every attack of wire_table.py over real TLS: the error at the victims, and that nothing was released before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import relay_attacks
import site_attacks
from harness import ROOT
from lying_relay import Stage, stage_of
from relayed_peel import attempt_file, encoded, layout_of, without_edges, without_self
from wire_table import ELSEWHERE, RELAY, SITE, Attack, rows

from fedhpc.app.federation import Federation
from fedhpc.enrolment.one_machine import Enrolled, enrol
from fedhpc.secure.salt import SALT_BYTES
from fedhpc.secure.transcript import parse_canon
from fedhpc.wire.object_names import ObjectName

pytestmark = pytest.mark.faults

MESSAGES = ("READY", "M1", "M2", "M3v", "M3", "M4", "M5", "M6")
SECTIONS = """
[cohort]
policy = "sync"

[secure]
mode = "pairwise"

[strategy]
name = "fedavg"

[task]
name = "logistic"
options = { features = 4 }

[train]
optimizer = "sgd"
lr = 0.1
"""


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    """Four sites: t = 1, τ = 3, one may be lost. They give up soon on a relay that has gone."""
    folder = tmp_path_factory.mktemp("four")
    made = enrol(folder, "four", SECTIONS, {f"s{u}": folder / "no-data" for u in range(1, 5)})
    for name in made.sites:
        file = made.site_file(name)
        file.write_text(file.read_text().replace("[exchange]\n", '[exchange]\nproxy = ""\npatience_s = 1.0\n'))
    return made


@pytest.fixture
def stage(enrolled: Enrolled, tmp_path: Path) -> Iterator[Stage]:
    with stage_of(enrolled, tmp_path) as made:
        yield made


@pytest.mark.parametrize("attack", [*RELAY, *SITE], ids=lambda attack: attack.key)
def test_an_attack(stage: Stage, attack: Attack) -> None:
    module = relay_attacks if attack in RELAY else site_attacks
    victims = getattr(module, attack.key)(stage)
    assert victims
    for u in victims:
        error = stage.sites[u].end()
        assert type(error).__name__ == attack.error, f"site {u}: {error!r}"
        assert attack.words in str(error), f"site {u}: {error!r}"
        assert stage.sites[u].got == 0, "no sum was given out"
        nothing_was_released(stage, attack, u)
    for u in stage.relay.sites:
        assert len(stage.sets(u)) <= 1, f"site {u} bound itself to two sets of one round"


def nothing_was_released(stage: Stage, attack: Attack, u: int) -> None:
    """Site `u` sent nothing from the message on at which it had to stop, and wrote nothing that would allow it."""
    later = MESSAGES[MESSAGES.index(attack.stops) :] if attack.stops else ()
    sent = stage.relay.sent(u)
    attempt = 0 if attack.stops == "READY" else attack.attempt
    assert not sent & {f"{attempt}/{kind}" for kind in later}, sent
    if attack.attempt == 1 and attack.stops in ("READY", "M1", "M2", "M3v"):
        assert stage.ledger(u) == []
    if attack.attempt == 1 and attack.stops in ("M3", "M4"):
        assert [entry["cohort"] for entry in stage.ledger(u)] == [[]], "one vector, and no set"


def test_without_a_lie_the_same_stage_gives_the_sum(stage: Stage) -> None:
    """The attacks fail for what they do, and not because the stage is broken."""
    stage.start()
    stage.relay.run(1)
    assert [stage.sites[u].end() for u in stage.relay.sites] == [None] * 4
    assert {stage.sites[u].got for u in stage.relay.sites} == {11110}
    assert stage.sets(1) == {(1, 2, 3, 4)}


def test_sites_that_refused_a_second_set_still_open_the_first(stage: Stage) -> None:
    """Once the false attempt is given up and the relay proposes the set that they are bound to, they start again."""
    relay_attacks.second_set(stage)
    for u in (1, 2, 3):
        assert stage.sites[u].end() is not None
    stage.relay.give_up(2)
    stage.start(1, 2, 3)
    stage.relay.run(3)
    for u in stage.relay.sites:
        assert stage.sites[u].end() is None
        assert stage.sites[u].got == 11110


def test_wrong_shares_are_named_and_not_needed(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Three good answers of four are enough, and who sent the wrong one is told. The last good one comes after it."""

    def after_the_others(fed: Federation) -> None:
        exchange = fed.session.sums.lead.exchange  # type: ignore[union-attr]
        put = exchange.put

        def late(round_: int, attempt: int, kind: str, data: bytes, **more: Any) -> None:
            if kind == "M5":
                stage.relay.wait(1, "M5", [1, 2, 3])
            put(round_, attempt, kind, data, **more)

        exchange.put = late  # type: ignore[method-assign]

    site_attacks.answers_with_noise(stage, 3)
    stage.start(spoil={4: after_the_others})
    stage.relay.run(1)
    for u in (1, 2, 4):
        assert stage.sites[u].end() is None
        assert stage.sites[u].got == 11110
    said = {record.getMessage() for record in caplog.records}
    assert any("site s3 sent a wrong share of site" in text for text in said), said


# --- what the relay has of a vector


LANES = 200_000
DRAWN = {u: np.random.default_rng(u).uniform(-8, 8, LANES) for u in relay_attacks.ALL}
FLOATS: dict[str, Any] = {"lanes": LANES, "values": DRAWN, "kind": np.float64, "bound": 8.0}


def held(stage: Stage, name: str) -> bytes:
    return stage.relay.store.path(ObjectName(stage.relay.config, 1, 1, name)).read_bytes()


def test_a_late_vector_is_hidden_by_its_self_mask_alone(stage: Stage) -> None:
    """Site 4 was called lost and its mask key opened, and the relay kept its vector: all other masks are taken off."""
    assert relay_attacks.late_vector(stage, total=sum(DRAWN[u] for u in (1, 2, 3)).max(), **FLOATS) == (4,)
    publics = {u: bytes.fromhex(parse_canon(held(stage, f"M1/{u}"))["body"]["mask"]) for u in stage.relay.sites}
    keys = attempt_file(stage.runs / "s4" / "attempts" / "round-1.attempt")
    values = {"n": DRAWN[4]}
    layout = layout_of(values, 8.0, 4)
    rest = without_edges(held(stage, "M3v/4"), layout, 4, keys, publics)
    plain = encoded(values, layout, 4)
    same = np.frombuffer(rest, np.uint8) == np.frombuffer(plain, np.uint8)
    assert same.mean() < 1 / 200  # as two unrelated strings of bytes
    end = layout.payload_bytes
    assert without_self(rest, layout, 4, keys)[:end] == plain[:end]


def test_masked_vectors_look_uniform_on_the_relays_disk(stage: Stage) -> None:
    """χ² of the bytes of all vectors; and none is another's repeat."""
    stage.start(**FLOATS)
    stage.relay.run(1)
    found = [np.frombuffer(held(stage, f"M3v/{u}"), np.uint8) for u in stage.relay.sites]
    for data in found:
        assert data.size == 8 * LANES + SALT_BYTES
        mean = data.size / 256
        assert ((np.bincount(data, minlength=256) - mean) ** 2 / mean).sum() < 255 + 8 * np.sqrt(2 * 255)
    for i, data in enumerate(found):
        assert all((data == other).mean() < 1 / 200 for other in found[:i])


def test_every_attack_of_the_list_is_somewhere() -> None:
    keys = {module: {a.key for a in rows} for module, rows in ((relay_attacks, RELAY), (site_attacks, SITE))}
    for module, named in keys.items():
        assert len(named) == len(RELAY if module is relay_attacks else SITE)
        assert all(callable(getattr(module, key)) for key in named)
    numbers = {n for row in (*RELAY, *SITE, *ELSEWHERE) for n in row.number.split(", ")}
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
    assert table == rows(), "python tests/faults/wire_table.py prints the table"
