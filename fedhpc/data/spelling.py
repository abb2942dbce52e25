"""Treats two spellings of a text as equal if the eye cannot tell them apart.

Files that were joined, copied from a web page or written on another system hold invisible characters (byte order
marks, zero widths, soft hyphens, marks of direction) and composed or decomposed accents. Numbers are never cleaned
so: a soft hyphen before a 5 may have been a minus.
"""

from __future__ import annotations

import re
import unicodedata

# Ignorable by Unicode though they are letters or marks: fillers, joiners, empty Braille, variation selectors.
_IGNORABLE = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef"
_IGNORED = re.compile(f"[{_IGNORABLE}]")


def visible(text: str) -> str:
    """`text` in NFC, stripped, without invisible characters; every kind of blank is a plain one.

    Printable ASCII keeps every character but the blanks around it. Case, leading zeros and double blanks stay distinct.
    """
    if text.isascii() and text.isprintable():
        return text.strip(" ")
    kept = []
    for character in _IGNORED.sub("", text):
        category = unicodedata.category(character)
        if character.isspace():
            kept.append(" ")
        elif category not in ("Cc", "Cf"):
            kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept)).strip(" ")
