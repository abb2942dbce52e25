"""The ranks of all sites that carry parts of a vector, and a communicator for each set of them that meets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedhpc.mpi.collectives import Group, MpiGroup, SerialGroup


class Rails:
    """Makes a communicator when ranks first meet in it: most jobs need few of those that are possible."""

    def __init__(self, comm: Any, ranks: Sequence[Sequence[int]], label: str) -> None:
        """`ranks`: for each site, in roster order, those of `comm` that carry the parts of a vector, in their order.

        `comm`: None in the serial world. `label` names this rank's site in errors.
        """
        self._comm, self._ranks, self._label = comm, ranks, label
        self._groups: dict[tuple[int, ...], Group] = {}

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of ranks of each site that carry a part."""
        return tuple(len(ranks) for ranks in self._ranks)

    def group(self, owners: tuple[int, ...]) -> Group:
        """The ranks owners[s] of site s, one for each site; this rank is one of them.

        The first time it is collective over them: ranks that make several make them in the same order.
        """
        if owners not in self._groups:
            self._groups[owners] = self._made(owners)
        return self._groups[owners]

    def _made(self, owners: tuple[int, ...]) -> Group:
        name = "rail " + "-".join(str(owner) for owner in (owners[:1] if len(set(owners)) == 1 else owners))
        if self._comm is None:
            return SerialGroup(name)
        members = [ranks[owner] for ranks, owner in zip(self._ranks, owners, strict=True)]
        # Unlike Split it needs no rank that is not among them.
        return MpiGroup(self._comm.Create_group(self._comm.Get_group().Incl(members)), f"{name}, {self._label}")
