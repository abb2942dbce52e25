"""A path of the kernel for another CPU than this one, run by an emulator: an Extension that talks to other_cpu.c."""

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedhpc.kernel

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
_SOURCES = Path(fedhpc.kernel.__file__).parent
_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-static"]
_NONE = (1 << 64) - 1


class OtherCpu:
    """armv8 under qemu-user. Handles are the keys themselves."""

    PATHS = "armv8"
    FLAGS = "aes pmull"

    def __init__(self, folder: Path) -> None:
        program = folder / "other_cpu"
        sources = [Path(__file__).with_suffix(".c"), _SOURCES / "armv8.c"]
        flags = [*_FLAGS, f"-I{_SOURCES}", "-DPATH=fedhpc_armv8"]
        subprocess.run([COMPILER, *flags, "-o", program, *sources, "-lm"], check=True)
        self._process = subprocess.Popen([EMULATOR, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(20) == 0

    def streams(self, path: int, keys: bytes, signs: bytes) -> object:
        if len(keys) != 32 * len(signs):
            raise ValueError("keys have 32 bytes")
        return struct.pack("<Q", len(signs)) + b"".join(
            keys[32 * i : 32 * i + 32] + signs[i : i + 1] for i in range(len(signs))
        )

    def inspect(self, path: int, key: Any, number: int, block: Any, tagged: int, spans: Any) -> bytes:
        self._ask(b"i", struct.pack("<QQQQQ", key is not None, number, block.size, tagged, len(spans)))
        self._ask(key or bytes(32), block.tobytes(), spans.tobytes())
        spans[:] = np.frombuffer(self._answer(spans.nbytes), np.int64).reshape(-1, 4)
        tag = self._answer(16)
        return tag if key is not None else b""

    def run(self, path: int, values: Any, kind: int, lanes: Any, width: int, factor: float, *rest: Any) -> tuple:
        offset, lane, rounding, masks, tag, opening = rest
        self._ask(b"r", struct.pack("<qQQQQQd", kind, width, lanes.size, offset, lane, opening, factor))
        self._ask(*(struct.pack("<Q", _NONE) if keys is None else keys for keys in (rounding, masks, tag)))
        self._ask(
            struct.pack("<Q", 0 if values is None else values.nbytes), b"" if values is None else values.tobytes()
        )
        self._ask(lanes.tobytes())
        lanes[:] = np.frombuffer(self._answer(lanes.nbytes), lanes.dtype)
        return struct.unpack("<QQQ", self._answer(24))

    def decode(self, path: int, lanes: Any, width: int, values: Any, kind: int, quantum: float, limit: int) -> int:
        self._ask(b"d", struct.pack("<qQQqd", kind, width, lanes.size, limit, quantum), lanes.tobytes())
        self._ask(struct.pack("<Q", values.nbytes), values.tobytes())
        values[:] = np.frombuffer(self._answer(values.nbytes), values.dtype)
        return int.from_bytes(self._answer(8), "little")

    def _ask(self, *parts: bytes) -> None:
        self._process.stdin.write(b"".join(parts))

    def _answer(self, size: int) -> bytes:
        self._process.stdin.flush()
        answer = self._process.stdout.read(size)
        assert len(answer) == size, "the program ended"
        return answer


def other_cpu(folder: Path) -> OtherCpu:
    """armv8 as an extension; skips the test where there is no compiler or emulator for it."""
    missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (make tools)")
    return OtherCpu(folder)
