"""Numbers as lanes of a ring, so that sums are exact in any order (docs/protocol.md section 3).

A vector is a list of tensors. Each is encoded as two's complement little-endian lanes of k bits with a public power of
two as its scale. A tensor's values (float32, float64 or int64) and its lanes are two stretches of memory, each with its
own geometry. Where all lanes are as wide as their values, as in every sum today, the two may be the same memory.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError, PolicyError
from fedhpc.secure import labels
from fedhpc.secure.elements import scaled
from fedhpc.secure.geometry import Geometry, Run
from fedhpc.secure.masks import SLACK_BYTES, TILE_BYTES, Keystream
from fedhpc.secure.salt import SALT_LANES
from fedhpc.secure.transcript import canon, hash_parts

MAX_SCALE = 1000  # 2^±scale must be a normal float64

_KIND_BITS = {"float32": 32, "float64": 64, "int64": 64}
_LANE_BITS = (8, 16, 32, 64)


def lane_bound(bits: int, sites: int) -> int:
    """Largest |x̃| one site may hold in a lane of `bits` so that the sum over `sites` does not wrap."""
    return ((1 << (bits - 1)) - 1) // sites


def scale_for(bound: float, bits: int, sites: int) -> int:
    """A scale s with bound·2^s within the lane bound; `bound` > 0 is what one site's values may reach.

    Only the power of two above `bound` counts, so that a bound and a count of exponents lead to the same scale.
    """
    _, exponent = math.frexp(bound)  # bound ≤ 2^exponent
    return scale_for_exponent(exponent, bits, sites)


def scale_for_exponent(exponent: int, bits: int, sites: int) -> int:
    """As `scale_for`, for values of at most 2^exponent."""
    room = lane_bound(bits, sites).bit_length() - 1  # 2^room ≤ lane bound
    return max(-MAX_SCALE, min(MAX_SCALE, room - exponent))


@dataclass(frozen=True)
class Tensor:
    """One tensor of a vector. `kind` is what it holds outside the ring: float32, float64 or int64."""

    name: str
    kind: str
    shape: tuple[int, ...]
    scale: int = 0
    bits: int = 0  # 0: the bits of the kind

    def __post_init__(self) -> None:
        if self.kind not in _KIND_BITS:
            raise DataError(f"tensor '{self.name}' is {self.kind}", f"sums take {', '.join(_KIND_BITS)}")
        if self.bits == 0:
            object.__setattr__(self, "bits", _KIND_BITS[self.kind])
        if self.bits not in _LANE_BITS:
            raise PolicyError(f"tensor '{self.name}' has lanes of {self.bits} bits", f"lanes have {_LANE_BITS} bits")
        if abs(self.scale) > MAX_SCALE or (self.scale and self.kind == "int64"):
            raise PolicyError(f"tensor '{self.name}' has the scale 2^{self.scale}")

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return math.prod(self.shape)

    @property
    def lane_bytes(self) -> int:
        """Bytes of one lane."""
        return self.bits // 8

    @property
    def value_bits(self) -> int:
        """Bits of one value."""
        return _KIND_BITS[self.kind]

    @property
    def quantum(self) -> float:
        """The step of the grid that values are rounded to; 0 for whole numbers, which are exact."""
        return 0.0 if self.kind == "int64" else math.ldexp(1.0, -self.scale)


class Piece(NamedTuple):
    """A run of one tensor's lanes, and where its values are."""

    tensor: Tensor
    start: int  # bytes start..stop of the vector's lanes
    stop: int
    lane: int  # the first one's place in the tensor
    lane_number: int  # its place among all lanes of the vector, gaps not counted
    values_start: int  # bytes values_start..values_stop of the vector's values
    values_stop: int

    def lanes_in(self, window: NDArray[np.uint8], first: int = 0) -> NDArray[Any]:
        """The lanes, unsigned, in a window of the vector's lanes that begins at byte `first`: a view."""
        return lanes_of(window, self.start - first, self.stop - first, self.tensor.bits)

    def values_in(self, buffer: NDArray[np.uint8], first: int = 0) -> NDArray[Any]:
        """The values in a buffer of the vector's values that begins at byte `first`: a view."""
        return buffer[self.values_start - first : self.values_stop - first].view(self.tensor.kind)


class Layout:
    """Where each tensor lies in the vector. The same at every site; its hash is in every mask key."""

    def __init__(self, tensors: Sequence[Tensor], *, salted: bool = False) -> None:
        """`tensors`: named differently. `salted`: with the salt behind them, as wherever two sites or more sum."""
        self.named = tuple(tensors)
        """What people sum."""
        names = {tensor.name for tensor in self.named}
        if len(names) < len(self.named):
            twice = next(t.name for i, t in enumerate(self.named) if t.name in {u.name for u in self.named[:i]})
            raise DataError(f"two tensors are called '{twice}'")
        self.salted = salted
        self.tensors = (*self.named, *([Tensor(labels.SALT, "int64", (SALT_LANES,))] if salted else []))
        """All that travels, in order."""
        self.geometry = Geometry([(t.bits, t.lanes) for t in self.tensors])
        """Of the lanes."""
        self.in_place = all(t.bits == t.value_bits for t in self.tensors)
        """Whether lanes are as wide as their values, and lie at the same offsets."""
        self.values = self.geometry if self.in_place else Geometry([(t.value_bits, t.lanes) for t in self.tensors])
        """The geometry of the values."""
        self.offsets = self.geometry.offsets
        self.nbytes = self.geometry.nbytes
        self.payload_bytes = self.geometry.end(len(self.named) - 1) if self.named else 0
        """Bytes of the lanes up to the end of the last named tensor."""
        self._lane_numbers = list(accumulate((t.lanes for t in self.tensors), initial=0))
        self.lanes = self._lane_numbers.pop()
        self.hash = hash_parts(labels.HASH_LAYOUT, canon(self.as_json()))

    def hash_under(self, key: bytes) -> bytes:
        """The hash as others see it [32]: keyed where the scales are secret; without a key where they are public."""
        return hmac.digest(key, self.hash, hashlib.sha256) if key else self.hash

    def as_json(self) -> list[dict[str, Any]]:
        """The layout as it is hashed: bits, name, scale and shape of each tensor."""
        return [{"bits": t.bits, "name": t.name, "scale": t.scale, "shape": list(t.shape)} for t in self.tensors]

    def shapes(self) -> list[list[int]]:
        """[[bits, lanes], …] as M0 names them."""
        return [[t.bits, t.lanes] for t in self.tensors]

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """The parts of tensors in bytes start..stop of the lanes. Both must be multiples of 16 or the end."""
        found = []
        for index, low, high, lane in self.geometry.stretches(start, stop):
            tensor = self.tensors[index]
            values_start, values_stop = low, high
            if not self.in_place:
                step = tensor.value_bits // 8
                values_start = self.values.offsets[index] + lane * step
                values_stop = values_start + (high - low) // tensor.lane_bytes * step
            number = self._lane_numbers[index] + lane
            found.append(Piece(tensor, low, high, lane, number, values_start, values_stop))
        return found

    def runs(self, start: int, stop: int) -> list[Run]:
        """The stretches of bytes start..stop of the lanes with lanes of one width, gaps inside included."""
        return self.geometry.runs(start, stop)

    def values_of(self, start: int, stop: int) -> tuple[int, int]:
        """(start, stop) of the values, in bytes, whose lanes are bytes start..stop."""
        if self.in_place:
            return start, stop
        pieces = self.pieces(start, stop)
        return (pieces[0].values_start, pieces[-1].values_stop) if pieces else (0, 0)


def lanes_of(buffer: NDArray[np.uint8], start: int, stop: int, bits: int) -> NDArray[Any]:
    """Bytes start..stop of `buffer` as unsigned lanes of `bits`: a view."""
    return buffer[start:stop].view(f"<u{bits // 8}")


class Codec:
    """Encodes and decodes pieces of a vector, tile by tile. Not for two threads at once.

    Values and lanes of a piece are views of its own kind and of unsigned integers of its bits, of one size. They are
    the same memory or share none of it.

    `weights`: w_u / W, what this site's floats are multiplied by (1.0 for a sum), by tensor name; 1.0 where absent.
    `rounding`: the key of the public rounding stream for stochastic rounding, or None for half-to-even.
    `exponents`: by name, int32 [lanes], of tensors whose lane i is x_i · 2^−e_i times the tensor's scale.
    """

    def __init__(
        self,
        sites: int,
        site: str,
        weights: dict[str, float] | None = None,
        rounding: bytes | None = None,
        exponents: Mapping[str, NDArray[np.int32]] | None = None,
    ) -> None:
        self.sites = sites
        self.site = site
        self._weights = weights or {}
        self._exponents = exponents or {}
        self.rounding = rounding
        """The public rounding stream's key [32], or None for half-to-even."""
        self._rounding = None if rounding is None else Keystream(rounding)
        lanes = TILE_BYTES // 8
        self._float64 = np.empty(lanes, dtype=np.float64)
        self._float32 = self._float64.view(np.float32)
        self._random = np.empty(lanes * 4 + SLACK_BYTES if rounding else 0, dtype=np.uint8)

    def has_exponents(self, tensor: Tensor) -> bool:
        """Whether each of its elements has a scale of its own."""
        return tensor.name in self._exponents

    def factor(self, tensor: Tensor) -> float:
        """w_u/W · 2^s, what values are multiplied by; the power of two is exact. Not for tensors with exponents."""
        return math.ldexp(self._weights.get(tensor.name, 1.0), tensor.scale)

    def limit(self, tensor: Tensor) -> int:
        """The largest |X| that `decode` takes: N times the bound of one site."""
        return lane_bound(tensor.bits, self.sites) * self.sites

    def admits(self, largest: float, tensor: Tensor) -> bool:
        """Whether `check` takes values of which `largest` is the largest |x|, NaN where one is none.

        Not for tensors with exponents.
        """
        bound = lane_bound(tensor.bits, self.sites)
        if tensor.kind == "int64":
            return largest <= bound
        return self._largest_lane(largest * self.factor(tensor)) <= bound

    def check(self, values: NDArray[Any], piece: Piece) -> None:
        """Refuse, before anything is sent, what has no place in the ring.

        Raises DataError that names tensor and site for NaN, infinity, and a value beyond the bound; nothing is clipped.
        """
        per_tile = TILE_BYTES // values.itemsize
        bound = lane_bound(piece.tensor.bits, self.sites)
        for at in range(0, values.size, per_tile):
            tile = values[at : at + per_tile]
            high, low = tile.max(), tile.min()
            if piece.tensor.kind == "int64":
                lane: float = max(int(high), -int(low))
            else:
                if not (math.isfinite(high) and math.isfinite(low)):
                    self._refuse_not_finite(tile, piece)
                if piece.tensor.name in self._exponents:
                    lane = self._largest_lane(float(np.abs(self._elements(tile, piece, at)).max()))
                else:
                    # Multiplication and rounding are monotonic, so the extremes stand for all.
                    lane = self._largest_lane(max(float(high), -float(low)) * self.factor(piece.tensor))
            if lane > bound:
                self._refuse_too_large(piece.tensor, bound)

    def encode(self, values: NDArray[Any], lanes: NDArray[Any], piece: Piece) -> None:
        """Write the checked `values` of `piece` into its `lanes`."""
        tensor = piece.tensor
        signed = lanes.view(f"<i{tensor.lane_bytes}")
        if tensor.kind == "int64":
            if not _same_memory(values, lanes):
                np.copyto(signed, values, casting="unsafe")
            return
        factor = self.factor(tensor)
        # float32 times a power of two is exact, so it gives the bits of the float64 path at twice the speed.
        fast = tensor.kind == "float32" and self._rounding is None and _is_float32_power(factor)
        per_tile = self._float64.size
        for at in range(0, values.size, per_tile):
            tile = values[at : at + per_tile]
            out = signed[at : at + per_tile]
            if tensor.name in self._exponents:
                double = self._elements(tile, piece, at)
                self._round(double, piece.lane_number + at)
                np.copyto(out, double, casting="unsafe")
                continue
            if fast:
                single = np.multiply(tile, np.float32(factor), out=self._float32[: tile.size])
                np.rint(single, out=single)
                np.copyto(out, single, casting="unsafe")
                continue
            double = np.multiply(tile, np.float64(factor), out=self._float64[: tile.size])
            self._round(double, piece.lane_number + at)
            np.copyto(out, double, casting="unsafe")

    @np.errstate(over="ignore")  # the caller of the sum looks whether it is finite
    def decode(self, lanes: NDArray[Any], values: NDArray[Any], piece: Piece) -> None:
        """Write the summed `lanes` of `piece` into its `values`: float64(X)·2^−s, rounded once to the kind.

        Raises PolicyError if a lane is beyond N times the bound of one site: the sum was altered or a site cheated.
        """
        tensor = piece.tensor
        signed = lanes.view(f"<i{tensor.lane_bytes}")
        limit = self.limit(tensor)
        quantum = math.ldexp(1.0, -tensor.scale)
        per_tile = self._float64.size
        # A lane of 32 bits is rounded once on its way to float32; float64 holds it exactly.
        fast = tensor.kind == "float32" and tensor.bits <= 32 and _is_float32_power(quantum)
        for at in range(0, signed.size, per_tile):
            tile = signed[at : at + per_tile]
            out = values[at : at + per_tile]
            if max(int(tile.max()), -int(tile.min())) > limit:
                raise PolicyError(
                    f"the sum of '{tensor.name}' is beyond what {self.sites} sites can hold",
                    "a site masked with other keys or its input was altered; nothing was applied",
                )
            if tensor.kind == "int64":
                if not _same_memory(out, tile):
                    np.copyto(out, tile)
                continue
            if fast:
                single = self._float32[: tile.size]
                np.copyto(single, tile, casting="unsafe")
                np.multiply(single, np.float32(quantum), out=out)
                continue
            double = self._float64[: tile.size]
            np.copyto(double, tile, casting="unsafe")
            if tensor.name in self._exponents:
                np.ldexp(double, -self._shift(piece, at, tile.size), out=double)
            else:
                np.multiply(double, np.float64(quantum), out=double)
            np.copyto(out, double, casting="same_kind")

    def _shift(self, piece: Piece, at: int, count: int) -> NDArray[np.int32]:
        """s − e of `count` elements, from the piece's element `at` on."""
        first = piece.lane + at
        return np.int32(piece.tensor.scale) - self._exponents[piece.tensor.name][first : first + count]

    def _elements(self, tile: NDArray[Any], piece: Piece, at: int) -> NDArray[np.float64]:
        """Lanes before rounding, where each element has a scale of its own."""
        return scaled(tile, self._weights.get(piece.tensor.name, 1.0), self._shift(piece, at, tile.size))

    def _round(self, values: NDArray[np.float64], lane_number: int) -> None:
        """Round in place, half to even or with the public random words of these lanes."""
        if self._rounding is None:
            np.rint(values, out=values)
            return
        words = self._rounding.read(lane_number * 4, values.size * 4, self._random).view("<u4")
        floor = np.floor(values)
        np.add(floor, (values - floor) * 4294967296.0 > words, out=values)

    def _largest_lane(self, value: float) -> float:
        """The largest |x̃| that `value` may be rounded to; infinity where the product left the range of float64."""
        if not math.isfinite(value):
            return math.inf
        return abs(round(value)) if self._rounding is None else math.ceil(abs(value))

    def _refuse_not_finite(self, tile: NDArray[Any], piece: Piece) -> None:
        what = "NaN" if np.isnan(tile).any() else "infinity"
        raise DataError(
            f"tensor '{piece.tensor.name}' of site {self.site} holds {what}",
            "the update was not sent; look for a diverging loss or missing values in the data",
        )

    def _refuse_too_large(self, tensor: Tensor, bound: int) -> None:
        # How far beyond is the site's own business: this message may be seen by others.
        whole = tensor.kind == "int64"
        allowed = str(bound) if whole else f"{math.ldexp(bound, -tensor.scale):.6g}"
        way_out = "raise bound=, or sum float64" if whole else "raise bound=, or leave it out to have the scale chosen"
        raise DataError(
            f"tensor '{tensor.name}' of site {self.site} holds a value beyond the bound {allowed}",
            f"values are never clipped in silence: {way_out}",
        )


def _same_memory(values: NDArray[Any], lanes: NDArray[Any]) -> bool:
    return values.itemsize == lanes.itemsize and np.may_share_memory(values, lanes)


def _is_float32_power(factor: float) -> bool:
    """Whether `factor` is a power of two that float32 holds as a normal number."""
    mantissa, exponent = math.frexp(factor)
    return mantissa == 0.5 and -125 <= exponent <= 128
