"""Mask and tag the frozen round's lanes with what an installed fedhpc runs, and say which path that was.

python masked_vectors.py tests/vectors/protocol_round.json
"""

import json
import sys

import numpy as np

from fedhpc.kernel import choice
from fedhpc.kernel.calls import Keys, Place
from fedhpc.secure.masks import Masks
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.tag import Tag, Tagger, tag_from_bytes

with open(sys.argv[1]) as file:
    frozen = json.load(file)
rows = [(r["name"], {32: "float32", 64: "float64"}[r["bits"]], r["shape"], r["scale"]) for r in frozen["layout"]]
layout, kernel, tag_key = Layout([Tensor(*row) for row in rows]), choice.kernel(), bytes.fromhex(frozen["k_tag"])
for site, encoded in enumerate(frozen["encoded"]):
    lanes, tag = np.frombuffer(bytes.fromhex(encoded), np.uint8).copy(), Tag()
    edges = [(bytes.fromhex(frozen["k_self"][site]), 1)]
    for name, key in frozen["k_edge"].items():
        pair = [int(number) for number in name.split("-")]
        if site + 1 in pair:
            edges.append((bytes.fromhex(key), 1 if site + 1 == pair[0] else -1))
    for piece in layout.pieces(0, layout.nbytes):
        if kernel is None:
            tag = tag + Tagger(tag_key).of(lanes, [piece])
            Masks(edges).add(piece.lanes_in(lanes), piece.start)
        else:
            keys = Keys(kernel.streams(edges), kernel.streams([(tag_key, 1)]))
            place = Place(piece.start, piece.lane_number)
            tag = tag + Tag(*kernel.hide(None, piece.lanes_in(lanes), 1.0, place, keys))
    if (lanes.tobytes().hex(), tag) != (frozen["masked"][site], tag_from_bytes(bytes.fromhex(frozen["tag"][site]))):
        sys.exit(f"site {site + 1} differs")
print(choice.running().name, choice.running().reason, sep=": ")
