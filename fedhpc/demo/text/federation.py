"""The text federation as files: four sites' token stores, the tokenizer that they share, and what they agree on."""

from __future__ import annotations

from pathlib import Path

from fedhpc.data.tokenize import tokenize
from fedhpc.data.tokenizer import train_tokenizer
from fedhpc.demo.text.ontology import Ontology
from fedhpc.enrolment.scaffold import NewSite, Plan, write_federation

ROUNDS = 8
VOCABULARY = 1024
SHARDED = "nerves"  # the site of two ranks, each with half of the model (FSDP)
STORES = "data"

STRATEGY = """\
name = "diloco"              # outer Nesterov momentum over many local steps
weights = "samples"
lr = 0.7
momentum = 0.5"""

TASK = """\
name = "transformer"
held_out = 0.1               # of the definitions
split_seed = {seed}

[task.options]
vocabulary = {vocabulary}
tokenizer_sha256 = "{sha256}"
context = 64
width = 64
layers = 2
heads = 4"""

TRAIN = """\
optimizer = "adamw"
lr = 0.003
batch_size = 32              # windows of 64 tokens
local_steps = 30
clip_norm = 1.0"""


def write_text_federation(directory: Path, ontology: Ontology, *, rounds: int = ROUNDS, seed: int = 0) -> Path:
    """Texts, tokenizer, stores, keys, site files and federation.toml in `directory`; path of federation.toml.

    The tokenizer learns from the names of all terms, which stand for public text: sites would not share theirs.
    """
    texts, stores = directory / "texts", directory / STORES
    for folder in (texts, stores):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(directory / "tokenizer", ontology.names, VOCABULARY)
    paths = {}
    for site, definitions in ontology.definitions.items():
        (texts / f"{site}.txt").write_text("\n".join(definitions) + "\n", encoding="utf-8")
        paths[site] = stores / f"{site}.h5"
        tokenize([texts / f"{site}.txt"], tokenizer, paths[site], unit="line")
    task = TASK.format(seed=seed, vocabulary=tokenizer.vocabulary, sha256=tokenizer.sha256)
    plan = Plan("text", rounds, seed, STRATEGY, task, TRAIN)
    sites = {site: NewSite(path, device="cpu") for site, path in paths.items()}
    sites[SHARDED] = NewSite(paths[SHARDED], ranks=2, device="cpu", backend="fsdp")
    return write_federation(directory, plan, sites)
