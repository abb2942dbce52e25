"""What processes take, as the kernel counts it: peak resident memory, shared memory included; processor time."""

from __future__ import annotations

import os
from pathlib import Path

_CLEAR_PEAK = "5"  # proc(5), clear_refs: reset VmHWM to the present RSS


def clear_peak() -> None:
    """Set VmHWM to the present resident size."""
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)


def resident_bytes() -> int:
    """VmRSS in bytes."""
    return _status("VmRSS")


def peak_bytes(pid: int | str = "self") -> int:
    """VmHWM in bytes: the largest resident size since `clear_peak`."""
    return _status("VmHWM", pid)


def processor_seconds(pid: int) -> float:
    """User and system time of all threads of another process, in ticks of a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(field: str, pid: int | str = "self") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no {field}")
