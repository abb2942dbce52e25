"""Numbers as lanes of a ring, so that sums are exact whatever the order (docs/protocol.md section 3).

A vector is a list of tensors. Each is encoded as two's complement little-endian lanes of k bits with a public power of
two as its scale, at the next multiple of 16 bytes. Encoding and decoding work in place: a float32 tensor becomes 32-bit
lanes and a float64 or int64 tensor 64-bit lanes in the same memory.
"""

from __future__ import annotations

import bisect
import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError, PolicyError
from fedhpc.secure import labels
from fedhpc.secure.elements import scaled
from fedhpc.secure.masks import SLACK_BYTES, TILE_BYTES, Keystream
from fedhpc.secure.salt import SALT_LANES
from fedhpc.secure.transcript import canon, hash_parts

ALIGN_BYTES = 16
MAX_SCALE = 1000  # 2^±scale must be a normal float64

_KIND_BITS = {"float32": 32, "float64": 64, "int64": 64}
_SMALL_LANES = "lanes of 8 and 16 bits are not built yet: they carry rounding errors from round to round"


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
        if self.bits in (8, 16):
            raise PolicyError(f"tensor '{self.name}' asks for {self.bits}-bit lanes", _SMALL_LANES)
        if self.bits != _KIND_BITS[self.kind]:
            raise PolicyError(f"tensor '{self.name}' is {self.kind} in {self.bits}-bit lanes")
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
    def quantum(self) -> float:
        """The step of the grid that values are rounded to; 0 for whole numbers, which are exact."""
        return 0.0 if self.kind == "int64" else math.ldexp(1.0, -self.scale)


@dataclass(frozen=True)
class Piece:
    """A run of one tensor's bytes: vector bytes start..stop, its lanes from number `lane` of the tensor on."""

    tensor: Tensor
    start: int
    stop: int
    lane: int  # place in the tensor
    lane_number: int  # place among all lanes of the vector, gaps not counted


class Layout:
    """Where each tensor lies in the vector. The same at every site; its hash is in every mask key."""

    def __init__(self, tensors: Sequence[Tensor], *, salted: bool = False) -> None:
        """`tensors`: named differently. `salted`: with the salt behind them, as wherever two sites or more sum."""
        self.named = tuple(tensors)
        """What people sum."""
        self.salted = salted
        self.tensors = (*self.named, *([Tensor(labels.SALT, "int64", (SALT_LANES,))] if salted else []))
        """All that travels, in order."""
        self.payload_bytes = 0
        """Bytes of the vector up to the end of the last named tensor."""
        self.offsets: list[int] = []
        self._lane_numbers: list[int] = []
        names: set[str] = set()
        at = lanes = 0
        for index, tensor in enumerate(self.tensors):
            if index < len(self.named):
                if tensor.name in names:
                    raise DataError(f"two tensors are called '{tensor.name}'")
                names.add(tensor.name)
            at = -(-at // ALIGN_BYTES) * ALIGN_BYTES
            self.offsets.append(at)
            self._lane_numbers.append(lanes)
            at += tensor.lanes * tensor.lane_bytes
            lanes += tensor.lanes
            if index < len(self.named):
                self.payload_bytes = at
        self.nbytes = at
        self.lanes = lanes
        self.hash = hash_parts(labels.HASH_LAYOUT, canon(self.as_json()))

    def hash_under(self, key: bytes) -> bytes:
        """The hash as others see it [32]: keyed where the scales are not public; an empty `key` where they are."""
        return hmac.digest(key, self.hash, hashlib.sha256) if key else self.hash

    def as_json(self) -> list[dict[str, Any]]:
        """The layout as it is hashed: bits, name, scale and shape of each tensor."""
        return [{"bits": t.bits, "name": t.name, "scale": t.scale, "shape": list(t.shape)} for t in self.tensors]

    def shapes(self) -> list[list[int]]:
        """[[bits, lanes], …] as M0 names them."""
        return [[t.bits, t.lanes] for t in self.tensors]

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """The parts of tensors in bytes start..stop of the vector. Both must be multiples of 16 or the end."""
        found = []
        # Empty tensors share their offset with the next one, so the search steps back to the first of equals.
        first = max(bisect.bisect_right(self.offsets, start) - 1, 0)
        while first and self.offsets[first - 1] == self.offsets[first]:
            first -= 1
        for index in range(first, len(self.tensors)):
            tensor, offset = self.tensors[index], self.offsets[index]
            if offset >= stop:
                break
            low = max(start, offset)
            high = min(stop, offset + tensor.lanes * tensor.lane_bytes)
            if low < high:
                lane = (low - offset) // tensor.lane_bytes
                found.append(Piece(tensor, low, high, lane, self._lane_numbers[index] + lane))
        return found

    def runs(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(start, stop, bits) of the stretches of bytes start..stop with lanes of one width, gaps inside included."""
        runs: list[tuple[int, int, int]] = []
        for piece in self.pieces(start, stop):
            if runs and runs[-1][2] == piece.tensor.bits:
                runs[-1] = (runs[-1][0], piece.stop, piece.tensor.bits)
            else:
                runs.append((piece.start, piece.stop, piece.tensor.bits))
        return runs


def lanes_of(buffer: NDArray[np.uint8], start: int, stop: int, bits: int) -> NDArray[Any]:
    """Bytes start..stop of the vector as unsigned lanes of `bits`: a view."""
    return buffer[start:stop].view(f"<u{bits // 8}")


class Codec:
    """Encodes and decodes pieces of a vector in place, tile by tile.

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
        self._rounding = None if rounding is None else Keystream(rounding)
        lanes = TILE_BYTES // 8
        self._float64 = np.empty(lanes, dtype=np.float64)
        self._float32 = self._float64.view(np.float32)
        self._random = np.empty(lanes * 4 + SLACK_BYTES if rounding else 0, dtype=np.uint8)

    def check(self, buffer: NDArray[np.uint8], piece: Piece) -> None:
        """Refuse, before anything is sent, what has no place in the ring.

        Raises DataError that names tensor and site for NaN, infinity, and a value beyond the bound; nothing is clipped.
        """
        values = buffer[piece.start : piece.stop].view(piece.tensor.kind)
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
                    lane = self._largest_lane(max(float(high), -float(low)) * self._factor(piece.tensor))
            if lane > bound:
                self._refuse_too_large(piece.tensor, bound)

    def encode(self, buffer: NDArray[np.uint8], piece: Piece) -> None:
        """Turn the checked values of `piece` into lanes, in place."""
        tensor = piece.tensor
        if tensor.kind == "int64":
            return  # whole numbers enter as they are
        values = buffer[piece.start : piece.stop].view(tensor.kind)
        lanes = values.view(f"<i{tensor.lane_bytes}")
        factor = self._factor(tensor)
        # float32 times a power of two is exact, so it gives the bits of the float64 path at twice the speed.
        fast = tensor.kind == "float32" and self._rounding is None and _is_float32_power(factor)
        per_tile = self._float64.size
        for at in range(0, values.size, per_tile):
            tile = values[at : at + per_tile]
            if tensor.name in self._exponents:
                double = self._elements(tile, piece, at)
                self._round(double, piece.lane_number + at)
                np.copyto(lanes[at : at + per_tile], double, casting="unsafe")
                continue
            if fast:
                single = np.multiply(tile, np.float32(factor), out=self._float32[: tile.size])
                np.rint(single, out=single)
                np.copyto(lanes[at : at + per_tile], single, casting="unsafe")
                continue
            double = np.multiply(tile, np.float64(factor), out=self._float64[: tile.size])
            self._round(double, piece.lane_number + at)
            np.copyto(lanes[at : at + per_tile], double, casting="unsafe")

    @np.errstate(over="ignore")  # whoever asked for the sum looks whether it is finite
    def decode(self, buffer: NDArray[np.uint8], piece: Piece) -> None:
        """Turn the summed lanes of `piece` into values, in place: float64(X)·2^−s, rounded once to the kind.

        Raises PolicyError if a lane is beyond N times the bound of one site: the sum was altered or a site cheated.
        """
        tensor = piece.tensor
        lanes = buffer[piece.start : piece.stop].view(f"<i{tensor.lane_bytes}")
        limit = lane_bound(tensor.bits, self.sites) * self.sites
        quantum = math.ldexp(1.0, -tensor.scale)
        per_tile = self._float64.size
        fast = tensor.kind == "float32" and _is_float32_power(quantum)
        for at in range(0, lanes.size, per_tile):
            tile = lanes[at : at + per_tile]
            if max(int(tile.max()), -int(tile.min())) > limit:
                raise PolicyError(
                    f"the sum of '{tensor.name}' is beyond what {self.sites} sites can hold",
                    "a site masked with other keys or its input was altered; nothing was applied",
                )
            if tensor.kind == "int64":
                continue
            if fast:
                single = self._float32[: tile.size]
                np.copyto(single, tile, casting="unsafe")
                np.multiply(single, np.float32(quantum), out=tile.view(np.float32))
                continue
            double = self._float64[: tile.size]
            np.copyto(double, tile, casting="unsafe")
            if tensor.name in self._exponents:
                np.ldexp(double, -self._shift(piece, at, tile.size), out=double)
            else:
                np.multiply(double, np.float64(quantum), out=double)
            np.copyto(tile.view(tensor.kind), double, casting="same_kind")

    def _shift(self, piece: Piece, at: int, count: int) -> NDArray[np.int32]:
        """s − e of `count` elements, from the piece's element `at` on."""
        first = piece.lane + at
        return np.int32(piece.tensor.scale) - self._exponents[piece.tensor.name][first : first + count]

    def _elements(self, tile: NDArray[Any], piece: Piece, at: int) -> NDArray[np.float64]:
        """Lanes before rounding, where each element has a scale of its own."""
        return scaled(tile, self._weights.get(piece.tensor.name, 1.0), self._shift(piece, at, tile.size))

    def _factor(self, tensor: Tensor) -> float:
        """w_u/W · 2^s; the power of two is exact."""
        return math.ldexp(self._weights.get(tensor.name, 1.0), tensor.scale)

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


def _is_float32_power(factor: float) -> bool:
    """Whether `factor` is a power of two that float32 holds as a normal number."""
    mantissa, exponent = math.frexp(factor)
    return mantissa == 0.5 and -125 <= exponent <= 128
