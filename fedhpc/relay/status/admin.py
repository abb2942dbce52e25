"""The operator's port, on loopback only: a page for people, /status.json, /metrics, /healthz. It changes nothing."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Mapping

from fedhpc.errors import ConfigError
from fedhpc.relay.http.server import RelayServer
from fedhpc.relay.settings import Limits, RelaySettings, split_address
from fedhpc.relay.status.snapshot import Since, gauges, snapshot
from fedhpc.relay.status.status_page import PAUSED, page
from fedhpc.relay.status.style import HEADERS

_LOCAL = {"127.0.0.1", "localhost", "::1"}
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN, _HTML, _JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"
_AT_ONCE = 16  # connections; others wait in the kernel


class _Admin(http.server.ThreadingHTTPServer):
    """Bounded: a local user who opens many connections must not take the relay's memory."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: object, client_address: object) -> None:
        self._free.acquire()
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()


def start_admin(server: RelayServer, settings: RelaySettings, limits: Limits, version: str) -> int:
    """Serve the admin port from a thread of its own; the port's number. Raises ConfigError if it is taken."""
    since = Since.now(settings, limits, version)

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10
        server_version = "fedhpc-relay"
        sys_version = ""

        def do_GET(self) -> None:
            # Another name for this address can only come from a browser that was lured here.
            if _host(self.headers.get("Host", "")) not in _LOCAL:
                self._answer(421, _PLAIN, "ask 127.0.0.1\n")
            elif self.path == "/healthz":
                stopping = server.routes.stopping.is_set()
                self._answer(503 if stopping else 200, _PLAIN, "stopping\n" if stopping else "ok\n")
            elif self.path == "/metrics":
                self._answer(200, METRICS_TYPE, server.metrics.text(gauges(snapshot(server, since))))
            elif self.path == "/status.json":
                self._answer(200, _JSON, json.dumps(snapshot(server, since)) + "\n", HEADERS)
            elif self.path in ("/", PAUSED):
                self._answer(200, _HTML, page(snapshot(server, since), paused=self.path == PAUSED), HEADERS)
            else:
                self._answer(404, _PLAIN, "/, /status.json, /metrics or /healthz\n")

        def _answer(self, status: int, kind: str, text: str, headers: Mapping[str, str] | None = None) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a scrape every few seconds is not news."""

    host, port = split_address(settings.admin, "relay.admin")
    try:
        admin = _Admin((host, port), Handler)
    except OSError as error:
        what = f"cannot listen on the admin port {host}:{port}: {error.strerror}"
        raise ConfigError(what, "give relay.admin another port in relay.toml") from None
    threading.Thread(target=admin.serve_forever, name="admin", daemon=True).start()
    return int(admin.server_address[1])


def _host(header: str) -> str:
    """The host of a Host header, without port and brackets."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).strip("[]")
