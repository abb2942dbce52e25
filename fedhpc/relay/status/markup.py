"""HTML that cannot be made wrong by what it shows: text is escaped unless it was made here."""

from __future__ import annotations

from html import escape

_VOID = {"meta"}


class Html(str):
    """Text that is HTML already; only `element` and `joined` make it, and constants of the page."""


def element(tag: str, /, *children: str, **attributes: str | float | None) -> Html:
    """`<tag …>children</tag>`. Children that are not Html are escaped, and so is every attribute's value.

    An underscore at an attribute's end is dropped, others become hyphens: `class_`, `aria_label`. None leaves it out.
    """
    given = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>" if tag in _VOID else f"<{tag}{given}>{joined(*children)}</{tag}>")


def joined(*parts: str) -> Html:
    """The parts one after the other, escaped where they are not Html."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))
