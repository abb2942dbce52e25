"""Joins and adds up once: `CASE` says what one site gives differently. Used by test_federation_api.py.

sum_ranks.py FEDERATION sites|site PATH CASE
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import fedhpc

warm = "torch" in sys.modules  # tests/warm.py
federation, how, path, case = sys.argv[1:]
with fedhpc.join(federation, **{how: path}) as fed:  # type: ignore[arg-type]
    me = fed.sites.index(fed.site) + 1
    odd = me == 2
    arrays: dict[str, Any] = {"rows": np.array([1, 2]), "dose": np.array([0.5, me / 2], np.float32)}
    options: dict[str, Any] = {}
    match case:
        case "plain":
            pass
        case "beyond":
            options = {"bound": 2.5}
            arrays["dose"][0] = 2.75 if odd else 0.5
        case "integer beyond":
            arrays["rows"][1] = 2**63 - 1 if odd else 2
        case "nan" | "nan with bound":
            arrays["dose"][0] = np.nan if odd else 1
            options = {"bound": 4.0} if case == "nan with bound" else {}
        case "infinity":
            arrays["dose"][0] = -np.inf if odd else 1
        case "another bound":
            options = {"bound": 8.0 if odd else 4.0}
        case "another name":
            arrays = {"rows": 1, "does" if odd else "dose": 1}
        case "another shape":
            arrays = {"rows": np.zeros(3 if odd else 4)}
        case "another kind":
            arrays = {"rows": 1.0 if odd else 1}
        case "ranks differ":
            arrays = {"rows": np.zeros(200_000 if fed.rank == 1 else 2, np.int64)}
        case "same name, other vector":
            fed.sum({"x": me}, name="cases")
            arrays, options = {"x": me + odd}, {"name": "cases"}
        case "same name, other shape":
            fed.sum({"x": me}, name="cases")
            arrays, options = {"x": [me]}, {"name": "cases"}
        case _:
            raise ValueError(case)
    got = fed.sum(arrays, **options)
    assert warm or "torch" not in sys.modules
    print(f"{fed.site} {fed.rank}/{fed.ranks}: {got['rows'].tolist()} {got['dose'].tolist()}")
