"""What a compiled path must answer before it is used: published vectors, and what NumPy and OpenSSL find.

A wrong instruction, a miscompiled loop or a broken CPU would give masks that do not cancel, or masks that hide nothing.
Standards have few vectors for a counter that starts at zero; those of AESAVS and of GCM do.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedhpc.kernel.calls import KINDS, Kernel, Keys, Place, Span

# NIST AESAVS, KeySbox and VarKey for 256 bits: AES of the zero block.
_AESAVS = {
    "c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558": "46f2fb342d6f0ab477476fc501242c5f",
    "28d46cffa158533194214a91e712fc2b45b518076675affd910edeca5f41ac64": "4bf3b0a69aeb6657794f2901b1440ad4",
    "80" + "00" * 31: "e35a6dcb19b201a01ebcfa8aa22b5759",
}
# McGrew and Viega, The Galois/Counter Mode of Operation, test cases 13 and 14: AES of 0, 1 and 2 under the zero key.
_GCM_BLOCKS = "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738bcea7403d4d606b6e074ec5d3baf39d18"
_KEYS = [bytes((17 * i + 59 * k + 3) % 256 for i in range(32)) for k in range(5)]
_MOST = 1100  # lanes: more than two of the kernel's tiles
_FEW = 70
_LANE = 5  # the first one's number; no multiple of the four words in a block
_BLOCK = (1 << 32) - 2  # of the mask streams: their counter carries beyond 32 bits


def failure(kernel: Kernel) -> str:
    """The first answer that `kernel` does not know, in a few words; empty if it knows all."""
    try:
        return _aes(kernel) or _gmac(kernel) or _largest(kernel) or _lanes(kernel)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"raises {type(error).__name__}"


def _aes(kernel: Kernel) -> str:
    for key, block in [*_AESAVS.items(), ("00" * 32, _GCM_BLOCKS)]:
        expected = bytes.fromhex(block)
        if kernel.keystream(kernel.streams([(bytes.fromhex(key), 1)]), 0, len(expected)).tobytes() != expected:
            return "AES-256-CTR differs from published vectors"
    return ""


def _gmac(kernel: Kernel) -> str:
    if kernel.inspect(np.empty(0, np.uint8), [], kernel.gmac_key(bytes(32))).tag.hex() != _GCM_BLOCKS[32:64]:
        return "GMAC differs from a published vector"
    key, data = kernel.gmac_key(_KEYS[0]), _stream(_KEYS[1], 0, 8192 + 16 * 19 + 5)
    for size in (1, 16, 16 * 17 + 3, data.size):
        mac = Cipher(algorithms.AES(_KEYS[0]), modes.GCM(size.to_bytes(12, "little"))).encryptor()
        mac.authenticate_additional_data(data[:size].data)
        mac.finalize()
        if kernel.inspect(data[:size], [], key, size).tag != mac.tag:
            return "GMAC differs from OpenSSL's"
    return ""


def _largest(kernel: Kernel) -> str:
    values: list[NDArray[Any]] = [np.array([1.5, -3.0, 0.25, 2.0, -0.0], np.float32), np.array([1.5, -3.25])]
    values += [np.array([5, -(2**63), 7]), np.array([-math.inf, 1.0]), np.array([math.nan, 1.0], np.float32)]
    block = np.concatenate([np.pad(v.view(np.uint8), (0, -v.nbytes % 16)) for v in values])
    starts = itertools.accumulate((-(-v.nbytes // 16) * 16 for v in values), initial=0)
    spans = [Span(start, start + v.nbytes, v.dtype.name) for start, v in zip(starts, values, strict=False)]
    found = kernel.inspect(block, spans).largest
    return "" if found[:4] == [3.0, 3.25, 2**63, math.inf] and math.isnan(found[4]) else "the largest value differs"


def _lanes(kernel: Kernel) -> str:
    for kind, width, random in itertools.product(KINDS, (1, 2, 4, 8), (False, True)):
        hot = width == (4 if kind == "float32" else 8) and not random
        if (kind != "int64" or not random) and (wrong := _run(kernel, kind, width, random, _MOST if hot else _FEW)):
            return f"{kind} in {8 * width}-bit lanes{' with random rounding' if random else ''}: {wrong}"
    return ""


def _run(kernel: Kernel, kind: str, width: int, random: bool, count: int) -> str:
    """Hide and open `count` numbers, and compare with NumPy's."""
    spread = _stream(_KEYS[2], 64, count * 8).view("<i8") >> (64 - 8 * width + 3)
    factor = 1.0 if kind == "int64" else 0.75 if random else 0.25
    values = (spread / factor).astype(kind) if kind != "int64" else spread
    real = np.float64(factor) * values
    down = np.floor(real)
    words = _stream(_KEYS[3], _LANE * 4, count * 4).view("<u4")
    whole = spread if kind == "int64" else (down + ((real - down) * 2.0**32 > words) if random else np.rint(real))
    plain = whole.astype(f"<i{width}")
    r = _stream(_KEYS[4], _LANE * 4, count * 4).view("<u4")
    total = sum(x * w for x, w in zip(plain.tolist(), r.tolist(), strict=True))
    tag = (0, total % 2**128) if width == 8 else (total % 2**64, 0)
    masked, at = plain.view(f"<u{width}").copy(), _BLOCK * 16
    edges = [(_KEYS[0], 1), (_KEYS[1], -1)]
    for key, sign in edges:
        mask = _stream(key, at, masked.nbytes).view(masked.dtype)
        masked = masked + mask if sign > 0 else masked - mask
    keys = Keys(kernel.streams(edges), kernel.streams([(_KEYS[4], 1)]), kernel.streams([(_KEYS[3], 1)]))
    if not random:
        keys = Keys(keys.masks, keys.tag)
    lanes, place = np.empty(count, masked.dtype), Place(at, _LANE)
    if kernel.hide(values, lanes, factor, place, keys) != tag or not np.array_equal(lanes, masked):
        return "hidden lanes differ"
    off = Keys(kernel.streams([(key, -sign) for key, sign in edges]), keys.tag)
    if kernel.open(lanes, place, off) != tag or not np.array_equal(lanes.view(plain.dtype), plain):
        return "opened lanes differ"
    out, most = np.empty(count, kind), max(int(plain.max()), -int(plain.min()))
    quantum = 1.0 if kind == "int64" else 0.125
    expected = (plain.astype(np.float64) * quantum).astype(kind) if kind != "int64" else plain
    if kernel.decode(lanes, out, quantum, most) != count or not np.array_equal(out, expected):
        return "decoded values differ"
    return "" if kernel.decode(lanes, out, quantum, most - 1) == 0 else "a sum out of range passes"


def _stream(key: bytes, offset: int, count: int) -> NDArray[np.uint8]:
    """OpenSSL's bytes offset..offset+count-1 of a stream."""
    block, skip = divmod(offset, 16)
    encryptor = Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    return np.frombuffer(encryptor.update(bytes(skip + count)), dtype=np.uint8)[skip:]
