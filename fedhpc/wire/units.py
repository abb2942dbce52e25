"""Bytes, seconds and where bytes are kept as people read them, for the status page and the terminal."""

from __future__ import annotations

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_SPANS = ((86400.0, "d", 3600.0, "h"), (3600.0, "h", 60.0, "min"), (60.0, "min", 1.0, "s"))
_UNITS_OF_TIME = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def size(count: float) -> str:
    """`count` bytes in decimal units: 999 bytes, 1.5 MB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1
    return f"{value:.{digits}f} {_UNITS[unit]}"


def span(seconds: float) -> str:
    """A duration with its two largest units: 12 s, 3 min 20 s, 2 d 4 h. Negative ones count as 0."""
    seconds = max(0.0, seconds)
    for large, name, small, rest in _SPANS:
        if seconds >= large - small / 2:
            whole, left = divmod(round(seconds / small), round(large / small))
            return f"{whole} {name} {left} {rest}" if left else f"{whole} {name}"
    return f"{seconds:.0f} s"


def kept(durable: str) -> str:
    """Where vectors are kept, for `durable` of the relay's roster: on disk, in memory."""
    return "in memory" if durable == "memory" else "on disk"


def took(seconds: float) -> str:
    """A duration in one unit, for tables: 0.25 s, 12.3 s, 1.2 min, 3.4 h."""
    for unit, name in _UNITS_OF_TIME:
        if seconds >= 0.9995 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"


def ago(seconds: float | None) -> str:
    """How long ago something was; None: not since the start."""
    return "not yet" if seconds is None else "now" if seconds < 1 else f"{span(seconds)} ago"


def sites(numbers: list[int]) -> str:
    """Sites by number, with runs joined: site 2; sites 1-4, 7."""
    return f"site{'' if len(numbers) == 1 else 's'} {ranges(numbers)}"


def ranges(numbers: list[int]) -> str:
    """Numbers with runs joined: 1-4, 7."""
    parts: list[str] = []
    at = 0
    rising = sorted(numbers)
    while at < len(rising):
        end = at
        while end + 1 < len(rising) and rising[end + 1] == rising[end] + 1:
            end += 1
        first, last = rising[at], rising[end]
        parts += [f"{first}-{last}"] if end - at > 1 else [str(n) for n in range(first, last + 1)]
        at = end + 1
    return ", ".join(parts) or "none"
