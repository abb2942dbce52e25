"""A relay as a real process, sites with real certificates, and raw TLS sockets for what a good client never sends."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import PATIENCE

from fedhpc.enrolment.certificates import Issued, issue_new, new_authority
from fedhpc.secure.suite import SHA256
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.link import RelayAccess
from fedhpc.transport.https.retry import Patience
from fedhpc.wire.object_names import ObjectName

ROOT = Path(__file__).parents[2]
FREE_FOR_ALL = ROOT / "tests" / "fakes" / "free_for_all.py"
CONFIG, OTHER_CONFIG = "ab" * 32, "cd" * 32
MIB = 1 << 20
SITES = 4


def name(text: str, config: str = CONFIG, round_: int = 1, attempt: int = 0) -> ObjectName:
    return ObjectName(config, round_, attempt, text)


def noise(length: int, seed: int = 0) -> bytearray:
    import numpy as np

    return bytearray(np.random.default_rng(seed).bytes(length))


def root(data: bytes | bytearray) -> str:
    return SHA256.tree(bytes(data)).hex()


class World:
    """Keys of a relay, four sites of one federation and one of another, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = new_authority()
        self.relay = self.new("relay")
        self.sites = {u: self.new(f"site{u}") for u in range(1, SITES + 1)}
        self.stranger = self.new("stranger")
        self.outsider = self.new("outsider")  # a site of the other federation
        (folder / "ca.pem").write_bytes(self.authority.certificate)

    def new(
        self, who: str, days: float = 2.0, start: datetime.datetime | None = None, by: Issued | None = None
    ) -> Issued:
        issued = issue_new(by or self.authority, who, days, start)
        issued.write(self.folder, who)
        return issued

    def roster(self, quota_bytes: int = 8 << 30, objects: int = 1000, without: int = 0) -> str:
        pins = ", ".join(f'{u} = "{s.pin().hex()}"' for u, s in self.sites.items() if u != without)
        one = f'["{CONFIG}"]\nbytes = {quota_bytes}\nobjects = {objects}\nsites = {{ {pins} }}\n'
        return one + f'["{OTHER_CONFIG}"]\nsites = {{ 1 = "{self.outsider.pin().hex()}" }}\n'

    def access(self, port: int, who: str = "site1", **changes: object) -> RelayAccess:
        access = RelayAccess(
            f"https://127.0.0.1:{port}",
            self.relay.pin(),
            self.folder / f"{who}.pem",
            self.folder / f"{who}.key",
            connect_s=5,
            stall_s=20,
        )
        return dataclasses.replace(access, **changes)  # type: ignore[arg-type]


class Relay:
    """`fedhpc relay serve` in a process of its own. `any_name`: without rounds, so objects may have any name."""

    def __init__(
        self, world: World, folder: Path, limits: str = "", roster: str = "", extra: str = "", *, any_name: bool = False
    ) -> None:
        self.world, self.folder = world, folder
        self._command = [str(FREE_FOR_ALL)] if any_name else ["-m", "fedhpc", "relay", "serve"]
        self.process: subprocess.Popen[str] | None = None
        self.port = self.admin = 0
        (folder / "roster.toml").write_text(roster or world.roster())
        self._text = (
            '[relay]\nlisten = "127.0.0.1:PORT"\nadmin = "127.0.0.1:0"\nstore = "store"\nroster = "roster.toml"\n'
            f'certificate = "{world.folder}/relay.pem"\nkey = "{world.folder}/relay.key"\n'
            f'client_authorities = ["{world.folder}/ca.pem"]\n{extra}\n[limits]\n{limits}\n'
        )

    def start(self, before: Callable[[], None] | None = None) -> Relay:
        (self.folder / "relay.toml").write_text(self._text.replace("PORT", str(self.port)))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self.log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, *self._command, "-v", str(self.folder / "relay.toml")],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=env,
            preexec_fn=before,
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline()
        assert "listening on port" in words, words + (self.folder / "log").read_text()
        self.port = int(words.split("port ")[1].split(",")[0])
        self.admin = int(words.rsplit(" ", 1)[1])
        return self

    def stop(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        if self.process.stdout:
            self.process.stdout.close()
        self.log.close()
        return code

    def log_text(self) -> str:
        return (self.folder / "log").read_text()

    def peak_bytes(self) -> int:
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) << 10

    def received_bytes(self) -> float:
        """What it has received of objects since it started."""
        rows = [row for row in self.metrics().splitlines() if row.startswith("fedhpc_relay_received_bytes_total")]
        return float(rows[0].split(" ")[1]) if rows else 0.0

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def client(self, site: int = 1, connections: int = 2, **changes: object) -> RelayClient:
        return RelayClient(
            self.world.access(self.port, f"site{site}", **changes), connections, Patience(5.0, 0.05, 0.5)
        )

    def context(self, who: str = "") -> ssl.SSLContext:
        """For TLS with the relay, with a certificate ('' for none)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if who:
            context.load_cert_chain(self.world.folder / f"{who}.pem", self.world.folder / f"{who}.key")
        return context

    @contextlib.contextmanager
    def raw(self, who: str = "site1", context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
        """A TLS socket with a certificate ('' for none), to say anything on."""
        context = context or self.context(who)
        with socket.create_connection(("127.0.0.1", self.port), 10) as plain, context.wrap_socket(plain) as sock:
            yield sock

    def ask(self, request: str, body: bytes = b"", who: str = "site1") -> tuple[int, str]:
        """One raw request on its own connection: (status, everything after the status line)."""
        with self.raw(who) as sock:
            sock.sendall(request.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            return read_answer(sock, bare=request.startswith("HEAD"))


def read_answer(sock: ssl.SSLSocket, *, bare: bool = False) -> tuple[int, str]:
    """One answer, by its content-length, or (0, "") if the peer closed without one."""
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                break
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        want = (
            int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            if b"content-length: " in head and not bare
            else 0
        )
        while len(body) < want and (more := sock.recv(65536)):
            body += more
            data += more
    text = data.decode("latin-1")
    return (int(text.split(" ")[1]) if text.startswith("HTTP/1.1 ") else 0), text


class Proxy:
    """A CONNECT proxy; `allow` False answers 403, and 503 says that nobody is there.

    `cut_after`: bytes up and down after which a tunnel is cut, once.
    """

    def __init__(self, *, allow: bool = True, cut_after: int = 0) -> None:
        self.allow, self.cut_after = allow, cut_after
        self.seen: list[str] = []
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._tunnel, args=(self._listener.accept()[0],), daemon=True).start()

    def _tunnel(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                more = near.recv(1)
                if not more:
                    return  # it hung up before it had asked for anything
                head += more
            self.seen.append(head.decode())
            if not self.allow:
                near.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            host, port = head.split(b" ")[1].decode().split(":")
            try:
                far = socket.create_connection((host, int(port)))
            except OSError:
                near.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                return
            with far:
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                limit, self.cut_after = self.cut_after, 0
                back = threading.Thread(target=self._pump, args=(far, near, limit), daemon=True)
                back.start()
                self._pump(near, far, limit)
                back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int) -> None:
        moved = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                moved += len(data)
                if limit and moved > limit:
                    self.cuts += 1
                    break
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
