"""HTTP/1.1 on one TLS connection: heads by h11, bodies received in place, every wait with an end.

Deliberately little: no chunked bodies and no compression; what is not needed cannot be attacked. A head is read within
a size and a time; the length it declares is only a number until a handler has compared it with a limit, and bodies pass
through one block buffer.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11

from fedhpc.relay.problems import Problem
from fedhpc.relay.settings import Limits
from fedhpc.wire.tls_read import read_available, readable

_DRAIN_BYTES = 8 << 20
_DRAIN_S = 2.0
_ROW = 1 << 14
_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Head:
    """A request's head. `headers`: lower-case names; `length`: the declared body, still unchecked."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    length: int
    keep: bool


class Hangup(Exception):  # noqa: N818 - the end of a connection is not an error
    """The peer is gone, or the connection has reached its end."""


class Connection:
    """One peer. Used by one thread."""

    def __init__(self, sock: ssl.SSLSocket, limits: Limits) -> None:
        self.sock, self._limits = sock, limits
        self._rest = bytearray()  # received, not yet used
        self._body_left = 0
        self.answering = False  # the head of the present answer has been sent
        self.bytes_in = self.bytes_out = 0

    def read_head(self, idle_s: float) -> Head:
        """The next request. Raises Hangup at the end of the connection, Problem for a bad or slow head."""
        deadline = time.monotonic() + (self._limits.head_s if self._rest else idle_s)
        started = bool(self._rest)
        while (end := self._rest.find(_END)) < 0:
            if len(self._rest) > self._limits.head_bytes:
                raise Problem("header-too-large", f"a head has at most {self._limits.head_bytes} bytes", close=True)
            try:
                data = self._recv(_ROW, deadline - time.monotonic())
            except TimeoutError:
                if started:
                    raise Problem("slow", f"the head took more than {self._limits.head_s} s", close=True) from None
                raise Hangup from None
            if not data:
                raise Hangup
            if not started:
                started, deadline = True, time.monotonic() + self._limits.head_s
            self._rest += data
        if end > self._limits.head_bytes:
            raise Problem("header-too-large", f"a head has at most {self._limits.head_bytes} bytes", close=True)
        head = parse_head(bytes(self._rest[: end + len(_END)]), self._limits.head_bytes)
        del self._rest[: end + len(_END)]
        self._body_left, self.answering = head.length, False
        return head

    def read_body_into(self, view: memoryview, begun: float, received: int) -> None:
        """Fill `view` from the body. `begun`, `received`: when the body began and what came before, for its pace.

        Raises Hangup if the peer closes first, Problem if it stalls or drips.
        """
        filled = min(len(self._rest), len(view))
        view[:filled] = self._rest[:filled]
        del self._rest[:filled]
        while filled < len(view):
            try:
                count = read_available(self.sock, view[filled:], self._limits.stall_s)
            except TimeoutError:
                raise Problem("slow", f"no byte for {self._limits.stall_s} s", close=True) from None
            if count == 0:
                raise Hangup
            filled += count
            late = time.monotonic() - begun - self._limits.stall_s
            if late > 0 and received + filled < late * self._limits.min_bytes_per_s:
                raise Problem("slow", f"less than {self._limits.min_bytes_per_s} bytes/s", close=True)
        self._body_left -= len(view)
        self.bytes_in += len(view)

    def peer_speaks(self) -> bool:
        """Whether the peer sent something or went away while it should be waiting for an answer."""
        return bool(self._rest) or self.sock.pending() > 0 or readable(self.sock)

    def send_head(self, status: int, headers: Mapping[str, str], length: int, body: bytes = b"") -> None:
        """Status line and headers, with a small body in the same packet; else `length` bytes follow, but for HEAD."""
        self.answering = True
        date = email.utils.formatdate(usegmt=True)  # sites compare their clocks with it (fedhpc doctor)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"date: {date}", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.send(memoryview(("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + body))

    def send(self, view: memoryview) -> None:
        """Send at most one block; the peer must take it within twice the stall time."""
        self.sock.settimeout(2 * self._limits.stall_s)
        self.sock.sendall(view)
        self.bytes_out += len(view)

    def send_json(self, status: int, value: Any, *, bare: bool = False) -> None:
        """A small JSON document; `bare`: its head only, for HEAD."""
        body = json.dumps(value).encode()
        headers = {"content-type": "application/json"}
        self.send_head(status, headers, len(body), b"" if bare else body)

    def send_problem(self, problem: Problem, *, bare: bool = False) -> bool:
        """The refusal; False if the connection must end, because the rest of the body is not worth reading."""
        keep = not problem.close and self._body_left == 0
        body = problem.document()
        headers = {"content-type": "application/problem+json", "connection": "keep-alive" if keep else "close"}
        if problem.status in (429, 503):
            headers["retry-after"] = "2"
        self.send_head(problem.status, headers, len(body), b"" if bare else body)
        return keep

    def linger(self) -> None:
        """Read a little of what the peer still sends: closing at once would make TCP drop the answer on its way."""
        if self._body_left == 0:
            return
        deadline, left = time.monotonic() + _DRAIN_S, _DRAIN_BYTES
        with contextlib.suppress(OSError, ValueError):
            while left > 0 and (data := self._recv(_ROW, deadline - time.monotonic())):
                left -= len(data)

    def hurry(self) -> None:
        """Wake the thread that waits for a request, from another thread: no further one will be read."""
        with contextlib.suppress(OSError):  # the plain socket's, because SSLSocket.shutdown drops the TLS state
            socket.socket.shutdown(self.sock, socket.SHUT_RD)

    def close(self) -> None:
        """Say goodbye without waiting for the answer."""
        with contextlib.suppress(OSError, ValueError):
            self.sock.settimeout(0.5)
            self.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self.sock.close()

    def _recv(self, size: int, timeout_s: float) -> bytes:
        if timeout_s <= 0:
            raise TimeoutError
        self.sock.settimeout(timeout_s)
        return self.sock.recv(size)


def parse_head(data: bytes, most: int) -> Head:
    """One request head, by h11's strict grammar. Raises Problem."""
    machine = h11.Connection(h11.SERVER, max_incomplete_event_size=most)
    machine.receive_data(data)
    try:
        request = machine.next_event()
    except h11.RemoteProtocolError as error:
        raise Problem("bad-request", str(error), close=True) from None
    if not isinstance(request, h11.Request) or machine.trailing_data[0]:
        raise Problem("bad-request", "the head is not one request", close=True)
    headers: dict[str, str] = {}
    for name, value in request.headers:
        key = name.decode("ascii")
        if key in headers:
            raise Problem("bad-request", f"the header {key} is given twice", close=True)
        headers[key] = value.decode("latin-1")
    if "transfer-encoding" in headers:
        raise Problem("length-needed", "chunked bodies are not taken: declare content-length", close=True)
    try:
        path, _, query = request.target.decode("ascii").partition("?")
    except UnicodeDecodeError:
        raise Problem("bad-request", "the target is not ASCII", close=True) from None
    keep = headers.get("connection", "").lower() != "close" and request.http_version == b"1.1"
    length = int(headers.get("content-length", "0"))
    return Head(request.method.decode("ascii"), path, query, headers, length, keep)
