"""Peak resident memory of this process, as the kernel counts it: shared memory included."""

from __future__ import annotations

from pathlib import Path

_CLEAR_PEAK = "5"  # proc(5), clear_refs: reset VmHWM to the present RSS


def clear_peak() -> None:
    """Set VmHWM to the present resident size."""
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)


def resident_bytes() -> int:
    """VmRSS in bytes."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """VmHWM in bytes: the largest resident size since `clear_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
