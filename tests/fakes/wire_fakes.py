"""A loopback port that answers each connection as a test says, for peers that no real program is."""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fedhpc.enrolment.certificates import Issued

PATIENCE_S = 60.0  # of one connection; a test that needs it has failed
Answer = Callable[[socket.socket], None]


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[int]:
    """The port; `answer` is called for each connection, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(PATIENCE_S)
                    answer(peer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)


def read_head(peer: socket.socket) -> str:
    """What the peer says up to an empty line; "" if it leaves before."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = peer.recv(1)
        if not byte:
            return ""
        head += byte
    return head.decode()


def saying(words: bytes, *, hold: bool = False) -> Answer:
    """Read a head, say `words`; `hold`: then wait until the peer leaves."""

    def answer(peer: socket.socket) -> None:
        if read_head(peer):
            peer.sendall(words)
            while hold and peer.recv(4096):
                pass

    return answer


def speaking_tls(context: ssl.SSLContext, then: Callable[[ssl.SSLSocket], None] = lambda sock: None) -> Answer:
    """Shake hands, then `then`."""

    def answer(peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as sock:
            then(sock)

    return answer


def alert(number: int) -> Answer:
    """Read the client's hello, answer with a fatal alert of TLS."""

    def answer(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(bytes([21, 3, 3, 0, 2, 2, number]))
        while peer.recv(4096):
            pass

    return answer


def context_of(issued: Issued, folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that is written into `folder`."""
    certificate, key = issued.write(folder, f"server-{secrets.token_hex(4)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
