"""The frozen vectors hold on every compiled path: encoding, stochastic rounding, masks, tag, and the opened sum."""

import json
from typing import Any

import numpy as np
import pytest
from harness import ROOT

from fedhpc.kernel.calls import Kernel, Keys, Place
from fedhpc.secure import labels
from fedhpc.secure.keys import derive
from fedhpc.secure.ring import Codec, Layout, Tensor
from fedhpc.secure.tag import Tag, tag_from_bytes

VECTORS = ROOT / "tests/vectors"


def layout_of(rows: list[dict[str, Any]]) -> Layout:
    kinds = {32: "float32", 64: "float64"}
    return Layout(
        [
            Tensor(
                r["name"],
                "int64" if r["bits"] == 64 and not r["scale"] else kinds[r["bits"]],
                tuple(r["shape"]),
                r["scale"],
            )
            for r in rows
        ]
    )


def test_stochastic_rounding(kernel: Kernel) -> None:
    frozen = json.loads((VECTORS / "rounding.json").read_text())
    layout, weight = layout_of(frozen["layout"]), float.fromhex(frozen["weight"])
    rounding = derive(
        bytes.fromhex(frozen["input"]), bytes.fromhex(frozen["config"]), labels.KEY_ROUNDING, frozen["site"]
    )
    assert rounding.hex() == frozen["key"]
    for piece in layout.pieces(0, layout.nbytes):
        tensor = piece.tensor
        read = int if tensor.kind == "int64" else float.fromhex
        values = np.array([read(v) for v in frozen["values"][tensor.name]], tensor.kind)
        lanes = np.zeros(values.size, f"<u{tensor.lane_bytes}")
        factor = 1.0 if tensor.kind == "int64" else weight * 2.0**tensor.scale
        keys = Keys(rounding=kernel.streams([(rounding, 1)]))
        kernel.hide(values, lanes, factor, Place(piece.start, piece.lane_number), keys)
        assert lanes.view(f"<i{tensor.lane_bytes}").tolist() == frozen["lanes"][tensor.name]


@pytest.mark.parametrize("site", range(4))
def test_masked_lanes_and_tag_of_a_round(kernel: Kernel, site: int) -> None:
    frozen = json.loads((VECTORS / "protocol_round.json").read_text())
    layout = layout_of(frozen["layout"])
    lanes = np.frombuffer(bytes.fromhex(frozen["encoded"][site]), np.uint8).copy()
    edges = [(bytes.fromhex(frozen["k_self"][site]), 1)]
    for name, key in frozen["k_edge"].items():
        pair = [int(n) for n in name.split("-")]
        if site + 1 in pair:
            edges.append((bytes.fromhex(key), 1 if site + 1 == pair[0] else -1))
    keys = Keys(kernel.streams(edges), kernel.streams([(bytes.fromhex(frozen["k_tag"]), 1)]))
    tag = Tag()
    for piece in layout.pieces(0, layout.nbytes):
        place = Place(piece.start, piece.lane_number)
        tag = tag + Tag(*kernel.hide(None, piece.lanes_in(lanes), 1.0, place, keys))
    assert lanes.tobytes().hex() == frozen["masked"][site]
    assert tag == tag_from_bytes(bytes.fromhex(frozen["tag"][site]))


def test_the_sum_of_a_round_is_opened_and_decoded(kernel: Kernel) -> None:
    frozen = json.loads((VECTORS / "protocol_round.json").read_text())
    layout, sites = layout_of(frozen["layout"]), len(frozen["M6"])
    lanes = np.frombuffer(bytes.fromhex(frozen["Y"]), np.uint8).copy()
    off = Keys(kernel.streams([(bytes.fromhex(key), sign) for key, sign in frozen["streams"]]))
    for piece in layout.pieces(0, layout.nbytes):
        kernel.open(piece.lanes_in(lanes), Place(piece.start, piece.lane_number), off)
    assert lanes.tobytes().hex() == frozen["X"]
    for piece in layout.pieces(0, layout.nbytes):
        summed, tensor = piece.lanes_in(lanes), piece.tensor
        expected, found = np.empty(summed.size, tensor.kind), np.empty(summed.size, tensor.kind)
        Codec(sites, "site").decode(summed, expected, piece)
        kernel.decode(summed, found, tensor.quantum or 1.0, 2 ** (tensor.bits - 1) - 1)
        assert found.tobytes() == expected.tobytes()
