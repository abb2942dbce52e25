"""What bare TLS 1.3 sockets move on this machine: the ceiling for an exchange over a relay.

One server process with a thread per connection, one client process per site, as relay and sites are; each client sends
`nbytes` and then receives `nbytes`, from and into memory, without HTTP, hashing or disk.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fedhpc.enrolment.certificates import issue_new, new_authority

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Pair:
    """What bare sockets moved."""

    nbytes: int  # up and down, of all clients together
    wall_s: float
    cpu_s: float  # of all processes, without their start

    @property
    def bytes_per_s(self) -> float:
        """Over the wall time."""
        return self.nbytes / self.wall_s


def tls_pair(clients: int, nbytes: int) -> Pair:
    """All `clients` at once, each `nbytes` up and as many down."""
    with tempfile.TemporaryDirectory() as folder:
        issue_new(new_authority(), "127.0.0.1").write(Path(folder), "pair")
        return _run(folder, clients, nbytes)


def _run(folder: str, clients: int, nbytes: int) -> Pair:
    server = subprocess.Popen(
        [sys.executable, "-m", "fedhpc.bench.tls_pair", "serve", folder, str(clients), str(nbytes)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    words = [sys.executable, "-m", "fedhpc.bench.tls_pair", "ask", port, str(nbytes)]
    asking = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    for process in asking:
        assert process.stdout is not None
        process.stdout.readline()  # it is connected
    begun = time.perf_counter()
    for process in asking:
        assert process.stdin is not None
        process.stdin.close()
    for process in asking:
        process.wait()
    seconds = time.perf_counter() - begun
    cpu_s = 0.0
    for process in [server, *asking]:
        assert process.stdout is not None
        cpu_s += float(json.loads(process.stdout.read()))
        process.wait(30)
    return Pair(2 * clients * nbytes, seconds, cpu_s)


def _serve(folder: Path, clients: int, nbytes: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "pair.pem", folder / "pair.key")
    with socket.create_server(("127.0.0.1", 0), backlog=clients) as listener:
        print(listener.getsockname()[1], flush=True)
        spent = time.process_time()
        threads = []
        for _ in range(clients):
            plain, _address = listener.accept()
            threads.append(threading.Thread(target=_answer, args=(context, plain, nbytes)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        print(time.process_time() - spent, flush=True)


def _answer(context: ssl.SSLContext, plain: socket.socket, nbytes: int) -> None:
    with context.wrap_socket(plain, server_side=True) as sock:
        buffer = memoryview(bytearray(_BLOCK))
        _receive(sock, buffer, nbytes)
        _send(sock, buffer, nbytes)


def _ask(port: int, nbytes: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port))
    with context.wrap_socket(plain) as sock:
        print("connected", flush=True)
        sys.stdin.read()
        spent = time.process_time()
        buffer = memoryview(bytearray(_BLOCK))
        _send(sock, buffer, nbytes)
        _receive(sock, buffer, nbytes)
        print(time.process_time() - spent, flush=True)


def _send(sock: ssl.SSLSocket, buffer: memoryview, nbytes: int) -> None:
    for at in range(0, nbytes, _BLOCK):
        sock.sendall(buffer[: min(_BLOCK, nbytes - at)])


def _receive(sock: ssl.SSLSocket, buffer: memoryview, nbytes: int) -> None:
    while nbytes > 0:
        nbytes -= sock.recv_into(buffer[: min(_BLOCK, nbytes)])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        _ask(int(sys.argv[2]), int(sys.argv[3]))
