"""Which part of a model each rank of a site holds: a run of its elements, all tensors one after another.

A rank holds the same elements of the model, of the update and of the outer optimiser's state, those whose lanes it
carries in the sum. The piece of a tensor that a rank holds is flat, or in the tensor's shape where it is all of it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhpc.mpi.collectives import Group
from fedhpc.secure.ring import Layout


class Form(NamedTuple):
    """What a whole tensor is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.size * self.dtype.itemsize


Forms = dict[str, Form]
"""The tensors of a model by name, in layout order."""


def forms_of(tensors: Mapping[str, NDArray[Any]]) -> Forms:
    """Of whole `tensors`."""
    return {name: Form(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


class Cut(NamedTuple):
    """Elements start..stop of a tensor, which rank `rank` holds."""

    rank: int
    start: int
    stop: int


class Held:
    """What this rank and the others of its site hold of a model. The same plan on every rank."""

    def __init__(self, site: Group, forms: Forms, bounds: Sequence[tuple[int, int]] | None = None) -> None:
        """`bounds`: (first, last) of each rank in the joined elements of all tensors, rising, without holes.

        Absent: every rank holds everything.
        """
        self.site, self.forms = site, forms
        self.replicated = bounds is None
        """Whether every rank holds all tensors whole."""
        offsets = list(accumulate((form.size for form in forms.values()), initial=0))
        self._all = offsets.pop()
        self._offsets = dict(zip(forms, offsets, strict=True))
        places = accumulate((form.nbytes for form in forms.values()), initial=0)
        self.byte_offsets = dict(zip(forms, places, strict=False))
        """Where each tensor begins in the joined bytes of all."""
        self.bounds = [(0, self._all)] if bounds is None else list(bounds)
        """(first, last) of each rank in the joined elements; of the leader only where everything is replicated."""
        self._lasts = [last for _, last in self.bounds]
        self._mine = (0, self._all) if bounds is None else self.bounds[site.rank]

    @classmethod
    def of_parts(cls, site: Group, forms: Forms, layout: Layout, parts: Sequence[tuple[int, int]]) -> Held:
        """The elements whose lanes lie in each rank's part of a vector, (start, stop) in bytes.

        `layout`: of a vector with these tensors, in this order.
        """
        bounds, at = [], 0
        salt = layout.tensors[-1] if layout.salted else None
        for start, stop in parts:
            pieces = [p for p in layout.pieces(start, stop) if p.tensor is not salt]
            count = sum((p.stop - p.start) // p.tensor.lane_bytes for p in pieces)
            bounds.append((at, at + count))
            at += count
        return cls(site, forms, bounds)

    def of(self, names: Collection[str]) -> Held:
        """The same of some of the tensors only."""
        forms = {name: form for name, form in self.forms.items() if name in names}
        if self.replicated:
            return Held(self.site, forms)
        sizes = [0] * len(self.bounds)
        for name in forms:
            for rank, start, stop in self.cuts(name):
                sizes[rank] += stop - start
        ends = list(accumulate(sizes))
        return Held(self.site, forms, list(zip([0, *ends[:-1]], ends, strict=True)))

    def cut(self, name: str) -> tuple[int, int]:
        """Elements (start, stop) of tensor `name` that this rank holds; equal numbers if it holds none."""
        offset, size = self._offsets[name], self.forms[name].size
        start, stop = (min(max(at - offset, 0), size) for at in self._mine)
        return start, stop

    def cuts(self, name: str) -> list[Cut]:
        """Who holds which elements of `name`, rising; where everything is replicated, the leader."""
        offset = self._offsets[name]
        end = offset + self.forms[name].size
        found = []
        for rank in range(bisect.bisect_right(self._lasts, offset), len(self.bounds)):
            first, last = self.bounds[rank]
            if first >= end:
                break
            start, stop = max(first, offset), min(last, end)
            if start < stop:
                found.append(Cut(rank, start - offset, stop - offset))
        return found

    @property
    def byte_ranges(self) -> list[tuple[int, int]]:
        """(start, stop) of each rank in the joined bytes of all tensors, as `bounds`."""
        return [(self._byte(first), self._byte(last)) for first, last in self.bounds]

    def _byte(self, element: int) -> int:
        """Where the joined element begins in the joined bytes; at the end, where those end."""
        for name, form in self.forms.items():
            if element <= self._offsets[name] + form.size:
                return self.byte_offsets[name] + (element - self._offsets[name]) * form.dtype.itemsize
        return 0

    def piece(self, name: str, whole: NDArray[Any]) -> NDArray[Any]:
        """What this rank holds of the `whole` tensor `name`: a view, if it is C-contiguous."""
        start, stop = self.cut(name)
        return whole if stop - start == whole.size else whole.reshape(-1)[start:stop]

    def pieces(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Copies of the pieces of whole `tensors`, in their order."""
        return {name: np.array(self.piece(name, tensor), order="C") for name, tensor in tensors.items()}

    def empty(self) -> dict[str, NDArray[Any]]:
        """New arrays for the pieces of all tensors."""
        return {name: np.empty(self.piece_shape(name), form.dtype) for name, form in self.forms.items()}

    def piece_shape(self, name: str) -> tuple[int, ...]:
        """The shape of the piece of `name` at this rank."""
        start, stop = self.cut(name)
        form = self.forms[name]
        return form.shape if stop - start == form.size else (stop - start,)
