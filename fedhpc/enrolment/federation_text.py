"""Single values in the text of a federation.toml: people's comments and order stay as they are."""

from __future__ import annotations

import re
from typing import Any

from fedhpc.config import parse_toml
from fedhpc.errors import ConfigError

MARK = "# ---- The roster. Everything below this line is written by `fedhpc federation`; a site's place is its number."

_VALUE = r'(?:"[^"\n]*"|\[[^\]]*\]|[^\s#]+)'


def toml(value: str | int | tuple[str, ...] | list[str]) -> str:
    """A value as TOML: text without quotes or backslashes, a whole number, true or false, a list of such text."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, int):
        return str(value).lower()
    return "[" + ", ".join(toml(item) for item in value) + "]"


def set_value(text: str, section: str, key: str, value: str | int | list[str], comment: str = "") -> str:
    """The text with `key = value` in [section], in its old line or in a new one below the section's header.

    Raises ConfigError, with the line to write by hand, for a text in which that cannot be done safely.
    """
    line = f"{key} = {toml(value)}"
    lines, at = _section(text, section)
    if not lines:
        head, mark, roster = text.partition(MARK)  # everything below the mark is rewritten
        changed = f"{head.rstrip()}\n\n[{section}]\n{line}{comment}\n\n{mark}{roster}"
    else:
        pattern = rf"(?m)^{re.escape(key)}[ \t]*=[ \t]*{_VALUE}" + (r"[ \t]*(?:#.*)?$" if comment else "")
        if re.search(pattern, lines):
            new = re.sub(pattern, lambda _: line + comment, lines, count=1)
        else:
            head, _, rest = lines.partition("\n")
            new = f"{head}\n{line}{comment}\n{rest}"
        changed = text[:at] + new + text[at + len(lines) :]
    if not _only(changed, text, section, key) or _read(changed, section).get(key) != value:
        raise ConfigError(f"federation.toml has no line for {section}.{key}", f"write under [{section}]: {line}")
    return changed


def drop_value(text: str, section: str, key: str) -> str:
    """The text without the line of `key` in [section]."""
    lines, at = _section(text, section)
    new = re.sub(rf"(?m)^{re.escape(key)}[ \t]*=[ \t]*{_VALUE}[ \t]*(?:#.*)?\n?", "", lines, count=1)
    changed = text[:at] + new + text[at + len(lines) :]
    if not _only(changed, text, section, key) or key in _read(changed, section):
        raise ConfigError(f"federation.toml has no line for {section}.{key}", f"remove {key} under [{section}]")
    return changed


def _section(text: str, section: str) -> tuple[str, int]:
    """The lines of [section] with its header, and where they begin; nothing if there is none."""
    found = re.search(rf"(?ms)^\[{re.escape(section)}\][ \t]*(?:#[^\n]*)?\n.*?(?=^\[|\Z)", text)
    return (found[0], found.start()) if found else ("", 0)


def _read(text: str, section: str) -> dict[str, Any]:
    table: dict[str, Any] = parse_toml(text.encode(), "federation.toml").get(section, {})
    return table


def _only(changed: str, text: str, section: str, key: str) -> bool:
    """Whether `changed` is TOML that differs from `text` in this one value."""
    before = _without(text, section, key)
    try:
        return _without(changed, section, key) == before
    except ConfigError:
        return False


def _without(text: str, section: str, key: str) -> dict[str, Any]:
    """Everything that the text says, except for one value."""
    table = parse_toml(text.encode(), "federation.toml")
    rest = {k: v for k, v in table.get(section, {}).items() if k != key}
    return {k: v for k, v in table.items() if k != section} | ({section: rest} if rest else {})
