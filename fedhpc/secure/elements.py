"""A scale for every element of a tensor: values times powers of two, exact and without overflow on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_VALUE = -(1 << 20)  # the exponent of 0


def exponents_of(values: NDArray[Any], weight: float) -> NDArray[np.int32]:
    """The exponents e with 2^(e−1) ≤ |x · weight| < 2^e of finite `values`, in their shape; NO_VALUE for 0."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    part, more = np.frexp(mantissa * weight)
    return np.where(part != 0, exponent + more, NO_VALUE).astype(np.int32)


def scaled(values: NDArray[Any], weight: float, shift: NDArray[np.int32]) -> NDArray[np.float64]:
    """x · weight · 2^shift in float64, element by element; only the product with `weight` is rounded.

    Mantissa by mantissa: neither x · weight nor x · 2^shift need be within the range of float64.
    """
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.asarray(np.ldexp(mantissa * weight, exponent + shift))
