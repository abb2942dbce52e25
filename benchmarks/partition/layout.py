"""Where the ranks of a measurement go on a partition, and why some measurements do not go there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

RANK_MIB = 128
"""Of a rank of a sum, without its part of the vector: 75 to 90 were measured."""
RELAY_MIB = 160
_PART = 1.05  # memory of a part over its size: the sum needs no second vector
_FREE = 0.9  # of a node's memory
_WHOLE_NODES = re.compile(r"(\d+)_nodes?")  # a scale of EESSI's test suite, such as 2_nodes


@dataclass(frozen=True)
class Place:
    """What is known of a partition."""

    cores: int | None = None
    """Of a node."""
    memory_mib: float | None = None
    """Of a node, for a job."""
    nodes: int | None = None
    """As many as a job may have."""
    scales: frozenset[int] = frozenset()
    """Numbers of whole nodes that its configuration lists; empty: it lists none, and takes any."""
    one_machine: bool = False
    """Measurements start their own ranks, more than there are cores if need be."""


def place_of(
    features: Iterable[str], extras: Mapping[str, Any], cores: int | None, *, one_machine: bool = False
) -> Place:
    """From a partition's configuration as EESSI's test suite has it: `N_nodes` in features, `mem_per_node` in extras.

    `mem_per_node` is in MiB. Our own configuration says `cores` and `nodes` in extras, too.
    """
    scales = frozenset(int(found[1]) for name in features if (found := _WHOLE_NODES.fullmatch(name)))
    memory, nodes = extras.get("mem_per_node"), extras.get("nodes")
    return Place(
        cores=int(extras["cores"]) if "cores" in extras else cores,
        memory_mib=None if memory is None else float(memory),
        nodes=1 if one_machine else None if nodes is None else int(nodes),
        scales=scales,
        one_machine=one_machine,
    )


@dataclass(frozen=True)
class Layout:
    """Ranks on nodes, as many on each."""

    nodes: int
    ranks_of_node: int
    mib_of_node: float
    """Memory that the ranks of a node need."""

    @property
    def ranks(self) -> int:
        """Of the whole measurement."""
        return self.nodes * self.ranks_of_node


def rank_mib(params: int, lane_bits: int = 32, ranks_of_site: int = 1) -> float:
    """MiB of a rank that carries its part of a vector of `params` numbers."""
    return RANK_MIB + _PART * params * lane_bits / 8 / ranks_of_site / 2**20


def over_nodes(place: Place, ranks: int, mib: float) -> Layout:
    """`ranks` ranks of `mib` MiB each over as few nodes as have a core, and the memory, for each of them."""
    most = ranks
    if not place.one_machine:
        most = min(most, place.cores or most)
        if place.memory_mib is not None:
            most = min(most, max(1, int(_FREE * place.memory_mib / mib)))
    nodes = next(n for n in range(1, ranks + 1) if ranks % n == 0 and ranks // n <= most)
    return Layout(nodes, ranks // nodes, mib * (ranks // nodes))


def obstacles(place: Place, layout: Layout) -> Iterator[str]:
    """Why this layout does not go there, in sentences."""
    if place.memory_mib is not None and layout.mib_of_node > _FREE * place.memory_mib:
        yield (
            f"its ranks need {layout.mib_of_node / 1024:.1f} GiB on each node, and a node has "
            f"{place.memory_mib / 1024:.1f} GiB, of which a tenth stays free"
        )
    if place.nodes is not None and layout.nodes > place.nodes:
        yield f"it needs {layout.nodes} nodes, and there {'is one' if place.nodes == 1 else f'are {place.nodes}'}"
    if place.scales and layout.nodes not in place.scales:
        named = ", ".join(map(str, sorted(place.scales)))
        yield f"it needs {layout.nodes} whole nodes, and the partition's features list {named}"
    if place.cores is not None and not place.one_machine and layout.ranks_of_node > place.cores:
        yield f"it needs {layout.ranks_of_node} cores of each node, and a node has {place.cores}"
