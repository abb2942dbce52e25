"""What the relay refuses, as RFC 9457 problem documents. One table: kind, status, title."""

from __future__ import annotations

import json

_KINDS = {
    "bad-request": (400, "The request is malformed"),
    "certificate-needed": (401, "A client certificate is needed"),
    "forbidden": (403, "This certificate may not do that"),
    "absent": (404, "There is no such object"),
    "method": (405, "The method is not allowed here"),
    "slow": (408, "The request did not arrive in time"),
    "other-bytes": (409, "The object exists with other bytes"),
    "round-over": (409, "The round is over and was cleaned up"),
    "too-late": (409, "Nobody waits for it any longer"),
    "length-needed": (411, "The length must be declared"),
    "too-large": (413, "The object is larger than the federation's limits"),
    "bad-range": (416, "The range does not fit the object"),
    "tree-mismatch": (422, "The bytes do not have the declared Tree hash"),
    "too-often": (429, "The site writes this too often"),
    "too-many-connections": (429, "Too many connections of this identity"),
    "header-too-large": (431, "The request's head is too large"),
    "internal": (500, "The relay failed"),
    "stopping": (503, "The relay is stopping or busy"),
    "disk-full": (507, "The relay's disk is full"),
    "quota": (507, "The quota is used up"),
}
TYPE_PREFIX = "urn:fedhpc:relay:"


class Problem(Exception):  # noqa: N818 - the name RFC 9457 uses
    """A refusal with a kind of the table and a detail for people. `close`: the connection cannot be used again."""

    def __init__(self, kind: str, detail: str, *, close: bool = False) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, self.title = _KINDS[kind]
        self.detail = detail
        self.close = close

    def document(self) -> bytes:
        """The application/problem+json body."""
        fields = {"type": TYPE_PREFIX + self.kind, "title": self.title, "status": self.status, "detail": self.detail}
        return json.dumps(fields).encode()
