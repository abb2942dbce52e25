"""M6 of all sites of one job: what is signed at a checkpoint and at the end, and kept with the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.pairwise import Member
from fedhpc.secure.transcript import open_message, parse_canon

_HASH = re.compile(r"[0-9a-f]{64}")


def refuse_unsigned(messages: Sequence[bytes], roster: Sequence[Member], state: bytes) -> None:
    """Raise PolicyError unless `messages` are M6 of every site of `roster` over one head, which name `state` [32]."""
    if len(messages) != len(roster):
        raise PolicyError(f"{len(messages)} of {len(roster)} sites signed this state")
    head, sum_tree = _head_and_sum(messages[0], roster[0].name)
    expected = {"state": state.hex(), "sum": sum_tree, "u3": [m.number for m in roster]}
    for member, message in zip(roster, messages, strict=True):
        refuse_other_result(message, head, expected, member)


def refuse_other_result(message: bytes, head: bytes, expected: Mapping[str, Any], member: Member) -> None:
    """Raise PolicyError unless `message` is M6 of `member` over `head` [32] with the body `expected`."""
    body = open_message(message, labels.SIGN_RESULT, member.number, head, member.sign, member.name)
    if body != expected:
        field = "sum" if isinstance(body, dict) and body.get("sum") != expected["sum"] else "state"
        raise PolicyError(
            f"site {member.name} has another {field} after this round",
            "its memory, NumPy or configuration differs; the round is not applied",
        )


def _head_and_sum(message: bytes, who: str) -> tuple[bytes, str]:
    """head [32], and Tree(X) in hex or "", as a message claims them; its signature is still to be checked."""
    try:
        value = parse_canon(message)
        head, sum_tree = str(value["t"]), str(value["body"]["sum"])
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"the M6 message of site {who} is malformed: {error}") from None
    if not _HASH.fullmatch(head) or not (sum_tree == "" or _HASH.fullmatch(sum_tree)):
        raise PolicyError(f"the M6 message of site {who} has no transcript or sum")
    return bytes.fromhex(head), sum_tree
