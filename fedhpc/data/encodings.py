"""Names what a file is that is not UTF-8 text, and the command that converts it."""

from __future__ import annotations

import shlex
from pathlib import Path

_STARTS = {
    b"PK\x03\x04": ("a ZIP archive, such as an Excel workbook", "open it and save it as CSV (UTF-8)"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "open it and save it as CSV (UTF-8)"),
    b"\x1f\x8b": ("compressed with gzip", "gunzip it first"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unzstd it first"),
    b"\xfd7zXZ": ("compressed with xz", "unxz it first"),
    b"BZh": ("compressed with bzip2", "bunzip2 it first"),
    b"PAR1": ("a Parquet file", "write it as CSV first"),
    b"\x89HDF": ("an HDF5 file", "`fedhpc data check` reads stores; to ingest, write it as CSV first"),
}


def foreign_start(head: bytes, path: Path) -> tuple[str, str] | None:
    """What a file that begins with `head` is, and a hint, if its first bytes are not UTF-8 text."""
    for start, told in _STARTS.items():
        if head.startswith(start):
            return f"it is {told[0]}, not CSV", told[1]
    name = _wide_encoding(head)
    if name is None:
        return None
    return f"it is {name.upper()}, not UTF-8", _command(name, path)


def foreign_line(line: bytes, path: Path, utf8_before: bool) -> tuple[str, str]:
    """What is wrong with `line`, which does not decode as UTF-8, and a hint.

    `utf8_before`: the file has had characters of UTF-8 beyond ASCII.
    """
    if utf8_before or _has_utf8(line):
        if _is_cut(line):
            return "the file ends within a character", "was it cut short? Copy it again"
        return (
            "it is not UTF-8, though other text of the file is",
            "the file was joined from two encodings: convert its parts before they are joined",
        )
    name = "latin1"
    if any(0x80 <= byte <= 0x9F for byte in line):
        try:
            line.decode("cp1252")
        except UnicodeDecodeError:
            return (
                "it is not UTF-8, latin1 or cp1252 (Windows)",
                "save it in UTF-8 where it was made; or find its encoding in `iconv -l` and convert it",
            )
        name = "cp1252"
    told = "cp1252, of Windows" if name == "cp1252" else "latin1"
    return f"it is not UTF-8 (perhaps {told}: look at the letters once it is converted)", _command(name, path)


def _command(name: str, path: Path) -> str:
    to = path.with_name(f"{path.stem}.utf8{path.suffix}")
    return f"iconv -f {name} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(str(to))}"


def _wide_encoding(head: bytes) -> str | None:
    """iconv's name of UTF-16 or UTF-32, by the byte order mark or the places of zeros."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if head.count(0) * 16 < len(head):  # even in Chinese text, delimiters and digits have a zero byte
        return None
    empty = [not any(head[start::4]) for start in range(4)]
    if empty == [False, False, True, True] or empty == [False, True, True, True]:
        return "utf-32le"
    if empty[:2] == [True, True] and not empty[3]:
        return "utf-32be"
    odd = [bool(head[start::2].count(0)) for start in range(2)]
    return {(True, False): "utf-16be", (False, True): "utf-16le"}.get((odd[0], odd[1]))


def _is_cut(line: bytes) -> bool:
    """Whether the text ends within a character, and is right before it."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _has_utf8(line: bytes) -> bool:
    """Whether it has a valid character of several bytes."""
    return any(ord(character) > 0x7F for character in line.decode("utf-8", "ignore"))
