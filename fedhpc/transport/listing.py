"""Listings of an attempt as a site asks for them and reads them: names, and small bodies along with them.

The answer is one line of JSON, then the bodies of the objects that are marked `"inline": true`, in that order
(docs/relay-openapi.yaml).
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass

from fedhpc.errors import PolicyError
from fedhpc.secure.suite import Suite
from fedhpc.wire.object_names import ObjectName

MOST_BYTES = 5 << 20  # of an answer: 4 MiB of names, 1 MiB of bodies


@dataclass(frozen=True)
class Entry:
    """An object in a listing."""

    name: str
    tree: bytes  # [32]
    length: int
    body: bytes | None = None  # its bytes, where they came along


def listing_path(
    config: str, round_: int, attempt: int, after: str, wait_s: float, until: tuple[str, int] | None
) -> str:
    """What to ask for: the objects after the cursor `after`; `until`: once there are so many of a kind."""
    query = f"wait={wait_s:.3f}&inline=1"
    query += f"&after={after}" if after else ""
    query += f"&kind={until[0]}&count={until[1]}" if until else ""
    return f"/v1/objects/{config}/{round_}/{attempt}/?{query}"


def read_listing(data: bytes, config: str, round_: int, attempt: int, suite: Suite) -> tuple[list[Entry], str]:
    """The objects and the next cursor. Raises ValueError for another form, PolicyError for a body with another Tree.

    `suite`: the federation's.
    """
    line, _, rest = data.partition(b"\n")
    try:
        answer = json.loads(line)
        cursor, objects = str(answer["after"]), list(answer["objects"])
        if not (cursor.isascii() and cursor.replace(".", "").isalnum()) or len(cursor) > 64:
            raise ValueError("the cursor has another form")
        entries: list[Entry] = []
        at = 0
        for found in objects:
            name = ObjectName(config, round_, attempt, str(found["name"])).name
            root, length = bytes.fromhex(found["tree"]), found["bytes"]
            if len(root) != 32 or type(length) is not int or length < 1:
                raise ValueError("an object has no Tree or no length")
            body = None
            if found.get("inline") is True:
                body, at = rest[at : at + length], at + length
                if at > len(rest):
                    raise ValueError("a body is missing")
                if not hmac.compare_digest(suite.tree(body), root):
                    raise PolicyError(f"the relay sent other bytes than it announced for {name}")
            entries.append(Entry(name, root, length, body))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the listing has another form: {type(error).__name__}") from None
    if at != len(rest):
        raise ValueError("there are bytes of no object")
    return entries, cursor
