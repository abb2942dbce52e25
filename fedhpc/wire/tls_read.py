"""Reading bodies from TLS sockets into memory, as many connections at once as there are processors.

OpenSSL hands out one record of 16 KiB a call, and each call gives the interpreter's lock away and takes it back. When
more threads than processors do that, they mostly wake each other. So a thread takes a turn only when bytes are there,
reads until there are none, and waits for more without it: slow peers hold no turn.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading

_turns = threading.Semaphore(max(2, len(os.sched_getaffinity(0))))


def readable(sock: socket.socket, timeout_s: float = 0.0) -> bool:
    """Whether there is something to read, or the end, within `timeout_s`. For any number of open files."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def read_available(sock: ssl.SSLSocket, view: memoryview, timeout_s: float) -> int:
    """Fill `view` as far as bytes are there, waiting for the first; how many, 0 if the peer has closed.

    Raises TimeoutError if none comes within `timeout_s`. Leaves `sock` with a timeout of 0.
    """
    sock.settimeout(0)
    filled = 0
    while True:
        with _turns, contextlib.suppress(ssl.SSLWantReadError):
            while filled < len(view):
                count: int = sock.read(len(view) - filled, view[filled:])  # type: ignore[assignment]
                if not count:
                    return filled
                filled += count
        if filled:
            return filled
        if not readable(sock, timeout_s):
            raise TimeoutError
