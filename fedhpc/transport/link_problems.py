"""What can go wrong with a connection to the relay: what is tried again, and what the relay refuses."""

from __future__ import annotations

import http.client
import json

from fedhpc.errors import PeersError, PolicyError

MOST_JSON_BYTES = 4 << 20
_RETRY = {408, 429, 500, 502, 503, 504}
_ROUND_KINDS = {"round-over", "too-late"}  # the state of the round; no rule was broken


class LinkDown(Exception):  # noqa: N818 - what callers retry
    """The connection failed or the relay is busy: try again."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        """`retry_after_s`: what the other end asks for; 0 for nothing."""
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class RelayProblem(PeersError):  # noqa: N818 - the name RFC 9457 uses
    """The relay refused, with one of its problem documents. `kind` is the last part of its type."""

    def __init__(self, status: int, kind: str, detail: str, hint: str = "") -> None:
        super().__init__(f"the relay refused ({status} {kind}): {detail}", hint)
        self.status, self.kind = status, kind


class NoWayError(PeersError):
    """The address or the proxy is wrong: trying again does not help."""


def refusal(response: http.client.HTTPResponse) -> LinkDown | PolicyError | RelayProblem:
    """The error of an answer that is not 2xx."""
    try:
        document = json.loads(response.read(MOST_JSON_BYTES))
        kind, detail = str(document["type"]).rsplit(":", 1)[-1], str(document["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        kind, detail = "unknown", response.reason
    kind, detail = printable(kind), printable(detail)
    if response.status in _RETRY:
        return LinkDown(f"the relay answered {response.status} {kind}: {detail}")
    if response.status in (401, 403, 409) and kind not in _ROUND_KINDS:
        return PolicyError(f"the relay refused ({response.status} {kind}): {detail}")
    return RelayProblem(response.status, kind, detail)


def printable(text: str) -> str:
    """One line for a terminal, whatever the other end sent."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])
