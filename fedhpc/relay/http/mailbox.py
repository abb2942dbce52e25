"""The mailbox of sites that have no certificate yet: one request in, one certificate out, per invited name.

PUT /v1/enrolment/NAME    header fedhpc-token; a body of at most 64 KiB, kept as enrolment/NAME.request
GET /v1/enrolment/NAME    header fedhpc-token; enrolment/NAME.pem once it is there; ?wait=seconds&after=SHA-256

The first request binds the token: the same bytes again succeed, others are a 409. Strangers learn nothing, not even
which names are invited, and leave nothing behind: files exist for invited names only, and a token has 128 bits, so
guessing needs no limit beyond that on connections. What lies in the mailbox is believed by nobody: the coordinator
checks that the site made it, the site that the certificate is for its key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time
import urllib.parse
from pathlib import Path

from fedhpc.config import parse_toml, read_bytes
from fedhpc.errors import ConfigError
from fedhpc.files import write_new
from fedhpc.relay.http.connection import Connection, Head
from fedhpc.relay.problems import Problem
from fedhpc.relay.settings import Limits

PATH = "/v1/enrolment/"
TOKEN_HEADER = "fedhpc-token"  # noqa: S105 - a header's name
MAX_BYTES = 64 << 10
_LOOK_S = 0.5  # how often a waiting thread looks into the folder, which another program writes
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NOBODY = "0" * 64

_log = logging.getLogger("fedhpc.relay")


class Mailbox:
    """Answers requests under /v1/enrolment/. Thread-safe; holds nothing but paths."""

    def __init__(self, tokens: Path, folder: Path, limits: Limits) -> None:
        """Raises ConfigError if the tokens cannot be read or the folder is missing."""
        self._tokens, self._folder, self._limits = tokens, folder, limits
        read_tokens(tokens)
        if not folder.is_dir():
            raise ConfigError(f"relay.enrolment: {folder} is not a folder")

    def answer(self, connection: Connection, head: Head, stopping: threading.Event) -> None:
        """Answer one request. Raises Problem."""
        name = head.path.removeprefix(PATH)
        self._check_token(name, head.headers.get(TOKEN_HEADER, ""))
        if head.method == "PUT":
            self._put(connection, head, name)
        elif head.method == "GET":
            self._get(connection, head, name, stopping)
        else:
            raise Problem("method", "only PUT, GET")

    def _check_token(self, name: str, token: str) -> None:
        """One answer for a wrong name and a wrong token, after the same work."""
        try:
            tokens = read_tokens(self._tokens)  # anew, so that an invitation works without a restart
        except ConfigError as error:
            _log.error("tokens not read, nobody can enrol: %s", error.what)
            tokens = {}
        given = hashlib.sha256(token.encode("utf-8")).hexdigest()
        if not hmac.compare_digest(given, tokens.get(name, _NOBODY)):
            raise Problem("forbidden", "no site of this name was invited with this token", close=True)

    def _put(self, connection: Connection, head: Head, name: str) -> None:
        if "content-length" not in head.headers:
            raise Problem("length-needed", "declare content-length", close=True)
        if not 0 < head.length <= MAX_BYTES:
            raise Problem("too-large", f"a request has 1 to {MAX_BYTES} bytes", close=True)
        body = bytearray(head.length)
        connection.read_body_into(memoryview(body), time.monotonic(), 0)
        path = self._folder / f"{name}.request"
        try:
            fresh = write_new(path, bytes(body))
            same = fresh or path.read_bytes() == body
        except OSError as error:
            _log.error("cannot keep a request: %s", error)
            raise Problem("disk-full", "the request cannot be kept; tell the relay's operator") from None
        if not same:
            raise Problem("other-bytes", f"site {name} has sent another request with this token already")
        connection.send_json(201 if fresh else 200, {"bytes": len(body)})

    def _get(self, connection: Connection, head: Head, name: str, stopping: threading.Event) -> None:
        wait_s, after = _query(head)
        deadline = time.monotonic() + min(wait_s, self._limits.wait_s)
        while True:
            try:
                pem = (self._folder / f"{name}.pem").read_bytes()
            except FileNotFoundError:
                pem = b""
            left = deadline - time.monotonic()
            if pem and len(pem) <= MAX_BYTES and hashlib.sha256(pem).hexdigest() != after:
                connection.send_head(200, {"content-type": "application/x-pem-file"}, len(pem), pem)
                return
            if left <= 0 or connection.peer_speaks():
                raise Problem("absent", "there is no new certificate for this site yet")
            if stopping.wait(min(left, _LOOK_S)):
                raise Problem("stopping", "the relay is stopping", close=True)


def read_tokens(path: Path) -> dict[str, str]:
    """Site name -> SHA-256 of its token, hex. Raises ConfigError."""
    tokens = parse_toml(read_bytes(path), str(path))
    for name, value in tokens.items():
        if not _NAME.fullmatch(name) or not isinstance(value, str) or not _HASH.fullmatch(value):
            raise ConfigError(f"{path}: '{name[:64]}' needs a site's name and 64 lower-case hex digits")
    return tokens


def _query(head: Head) -> tuple[float, str]:
    """(?wait=, ?after=). Raises Problem."""
    try:
        query = dict(urllib.parse.parse_qsl(head.query, strict_parsing=bool(head.query), max_num_fields=4))
    except ValueError:
        query = {"": ""}
    wait, after = query.pop("wait", "0"), query.pop("after", "")
    if query or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", wait) or not (after == "" or _HASH.fullmatch(after)):
        raise Problem("bad-request", "the query knows wait=SECONDS and after=SHA-256")
    return float(wait), after
