"""The yardstick of relay_transfer.py: TLS 1.3 sockets without HTTP, hashes or a disk, and what processes spend."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
Files = tuple[str, str, str]  # certificate, key, authority


def server_context(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files[0], files[1])
    context.load_verify_locations(files[2])
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    return context


def client_context(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(files[0], files[1])
    return context


def _threads(port: int, files: Files, handle: Callable[[ssl.SSLSocket], None]) -> None:
    context = server_context(files)
    listener = socket.create_server(("127.0.0.1", port), backlog=64)

    def one(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as sock:
            assert sock.getpeercert(binary_form=True)
            handle(sock)

    while True:
        threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()


def bare(port: int, files: Files) -> None:
    """No HTTP: the request is read as one line, then bytes flow."""

    def handle(sock: ssl.SSLSocket) -> None:
        buffer = bytearray(BLOCK)
        while head := sock.recv(4096):
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(4096)
            count = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            if head.startswith(b"PUT"):
                while count:
                    count -= sock.recv_into(buffer, min(count, BLOCK))
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            else:
                count = int(head.split(b"?")[1].split(b" ")[0])
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % count)
                while count:
                    sock.sendall(memoryview(buffer)[: min(count, BLOCK)])
                    count -= min(count, BLOCK)

    _threads(port, files, handle)


def client(port: int, files: Files, up: int, down: int, ready: Any, done: Any) -> None:
    """One connection: PUT `up` bytes and GET `down` bytes; waits at `ready` before each."""
    plain = socket.create_connection(("127.0.0.1", port))
    sock = client_context(files).wrap_socket(plain)
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    ready.wait()
    sock.sendall(b"PUT /up HTTP/1.1\r\nhost: relay\r\ncontent-length: %d\r\n\r\n" % up)
    for at in range(0, up, BLOCK):
        sock.sendall(view[: min(BLOCK, up - at)])
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    assert b" 200 " in head, head
    done.wait()
    ready.wait()
    sock.sendall(b"GET /down?%d HTTP/1.1\r\nhost: relay\r\ncontent-length: 0\r\n\r\n" % down)
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1024)
    assert b" 200 " in head, head
    left = down - (len(head) - head.index(b"\r\n\r\n") - 4)
    while left:
        left -= sock.recv_into(buffer, min(left, BLOCK))
    done.wait()


def peak_rss(pid: int) -> int:
    """VmHWM in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) << 10


def cpu_s(pid: int) -> float:
    """Processor seconds, user and system: hardly moved by what else runs on a shared machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
