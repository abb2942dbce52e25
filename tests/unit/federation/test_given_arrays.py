"""What people hand to `fed.sum`: it works, or words say what would have been lost."""

from __future__ import annotations

import array
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from federation_fakes import Meeting

from fedhpc.app.federation import Federation
from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.given_arrays import given_arrays

MASKED = np.ma.array([1.0, 99.0], mask=[False, True])


def given(value: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return given_arrays({"x": value})["x"]


def quiet(make: Callable[[], Any]) -> Any:
    """What torch and NumPy warn of when it is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


class Lazy:
    """An array of another library, as NumPy meets it."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([1.0, 2.0])


class Raises:
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise RuntimeError("patient 4711 has 12.5")


class Quantity(np.ndarray):
    unit = "mg/dl"


class Pint:
    units = "mg/dl"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([1.0])


class Series:
    index = ("a", "b")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([1.0, 2.0])


class DataArray(Lazy):
    coords = ()


Series.__module__ = "pandas.core.series"
Wide = type("Int64Array", (Lazy,), {"__module__": "pandas.arrays"})
with_grad = torch.tensor([1.0, 2.0], requires_grad=True)

WORKS: dict[str, tuple[Any, Any, type]] = {
    "a list": ([1, 2], [1, 2], np.int64),
    "a nested tuple": (((1, 2.5), (3, 4)), [[1, 2.5], [3, 4]], np.float64),
    "a number": (2.5, 2.5, np.float64),
    "a bool": (True, True, np.bool_),
    "a numpy scalar": (np.float32(0.5), 0.5, np.float32),
    "numpy float16": (np.array([0.1, 65504], np.float16), [0.0999755859375, 65504], np.float32),
    "columns of a table": (np.arange(6.0).reshape(3, 2)[:, 1], [1, 3, 5], np.float64),
    "Fortran order": (np.asfortranarray(np.arange(6.0).reshape(2, 3)), [[0, 1, 2], [3, 4, 5]], np.float64),
    "backwards": (np.arange(3)[::-1], [2, 1, 0], np.int64),
    "big-endian": (np.array([1, 2], ">i4"), [1, 2], np.dtype(">i4").type),
    "a matrix": (quiet(lambda: np.asmatrix([[1, 2]])), [[1, 2]], np.int64),
    "a range": (range(3), [0, 1, 2], np.int64),
    "an array of the standard library": (array.array("d", [1.5, 2.0]), [1.5, 2.0], np.float64),
    "another library": (Lazy(), [1, 2], np.float64),
    "a tensor": (torch.tensor([1, 2]), [1, 2], np.int64),
    "with a gradient": (with_grad, [1, 2], np.float32),
    "a loss": (with_grad.sum(), 3, np.float32),
    "a buffer": (torch.nn.Buffer(torch.ones(1)), [1], np.float32),
    "a parameter": (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)), [1, 1], np.float64),
    "bfloat16": (torch.tensor([1.0, 3.0], dtype=torch.bfloat16), [1, 3], np.float32),
    "bfloat16 with a gradient": (torch.ones(2, dtype=torch.bfloat16, requires_grad=True), [1, 1], np.float32),
    "half": (torch.tensor([0.5], dtype=torch.float16), [0.5], np.float32),
    "float8": (torch.tensor([0.5]).to(torch.float8_e4m3fn), [0.5], np.float32),
    "transposed": (torch.arange(4.0).reshape(2, 2).T, [[0, 2], [1, 3]], np.float32),
    "expanded": (torch.tensor([1.0]).expand(3), [1, 1, 1], np.float32),
    "negated view": (torch.tensor([1 + 2j]).conj().imag, [-2], np.float32),
    "tensors in a list": ([with_grad.sum(), torch.tensor(1.0, dtype=torch.bfloat16)], [3, 1], np.float32),
    "arrays in a list": ([np.array([1.0, 2]), [3, 4]], [[1, 2], [3, 4]], np.float64),
    "numbers of NumPy in a list": ([np.float32(0.5), np.float32(2)], [0.5, 2], np.float32),
    "nothing": ([], [], np.float64),
}


@pytest.mark.parametrize("case", WORKS)
def test_what_works(case: str) -> None:
    value, expected, kind = WORKS[case]
    found = given(value)
    assert type(found) is np.ndarray
    assert found.dtype.type is kind
    assert found.tolist() == expected
    assert found.flags.c_contiguous


REFUSED: dict[str, tuple[Any, str]] = {
    "masked": (MASKED, "masked array"),
    "masked, with nothing masked": (np.ma.array([1.0]), "masked array"),
    "the masked constant": (np.ma.masked, "masked array"),
    "masked in a list": ([MASKED, MASKED], "masked array"),
    "masked, deep": ([[1.0, 2.0], (MASKED,)], "masked array"),
    "a quantity": (np.ones(2).view(Quantity), "Quantity"),
    "records": (np.rec.array([(1.0, 2)]), "recarray"),
    "pint": (Pint(), "Pint"),
    "pandas": (Series(), "labels"),
    "nullable": (Wide(), "labels"),
    "xarray": (DataArray(), "labels"),
    "pandas in a list": ([Series(), Series()], "labels"),
    "sparse": (torch.eye(2).to_sparse(), "sparse"),
    "sparse rows": (quiet(lambda: torch.eye(2).to_sparse_csr()), "sparse"),
    "nested": (quiet(lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])), "nested"),
    "quantised": (quiet(lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)), "quantised"),
    "meta": (torch.ones(2, device="meta"), "meta"),
    "complex": (np.array([1j]), "dtype complex128"),
    "complex tensor": (torch.tensor([1j]), "dtype complex64"),
    "longdouble": (np.longdouble(1), "dtype float128"),
    "text": ("12.5", "dtype <U4"),
    "text in a list": (["a", "b"], "dtype <U1"),
    "bytes": (b"12", "dtype |S2"),
    "dates": (np.array(["2026-01-01"], "datetime64[D]"), "dtype datetime64"),
    "large whole numbers": ([2**70], "are not 64-bit numbers"),
    "none": (None, "are not 64-bit numbers"),
    "a missing number": ([1.0, None], "are not 64-bit numbers"),
    "a set": ({1, 2}, "are not 64-bit numbers"),
    "a dictionary": ({"a": 1}, "are not 64-bit numbers"),
    "a generator": ((i for i in range(3)), "are not 64-bit numbers"),
    "rows of different lengths": ([[1, 2], [3]], "not an array of numbers"),
    "what raises": (Raises(), "not an array of numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    value, words = REFUSED[case]
    with pytest.raises(DataError) as caught:
        Federation(Meeting(1).session(1)).sum({"x": value})
    text = caught.value.lines()
    assert words in text
    assert "'x'" in text
    assert caught.value.hint
    assert "4711" not in text
    assert "99" not in text
    with pytest.raises(DataError):
        Federation(Meeting(1).session(1)).mean({"x": value})


def test_a_distributed_tensor_is_told_how_to_become_whole() -> None:
    class DTensor(torch.Tensor):
        pass

    class Image(torch.Tensor):
        pass

    with pytest.raises(DataError, match="of which this rank holds a part") as caught:
        given(torch.ones(2).as_subclass(DTensor))
    assert "full_tensor()" in caught.value.hint
    with pytest.raises(DataError, match="Image"):
        given(torch.ones(2).as_subclass(Image))


def test_a_list_in_itself_ends() -> None:
    deep: list[Any] = []
    deep.append(deep)
    with pytest.raises(DataError, match="too deep"):
        given(deep)


def test_names() -> None:
    names: list[Any] = ["", "ä", 'a"b', "x" * 201, 1, None, ("a",)]
    for name in names:
        with pytest.raises(ConfigError, match="the name of an array"):
            given_arrays({name: 1})
    with pytest.raises(ConfigError, match="name is 5"):
        Federation(Meeting(1).session(1)).sum(1, name=5)  # type: ignore[call-overload]


def test_small_floats_keep_all_their_digits_in_a_sum() -> None:
    """As float32, whose sums do not end at 65504."""
    value = torch.tensor([40000.0, 0.1], dtype=torch.float16)
    found = Meeting(3).run(lambda session: Federation(session).sum({"x": value}))[1]["x"]
    assert found.dtype == np.float32
    assert found.tolist() == [120000.0, float(np.float32(3 * float(value[1])))]
