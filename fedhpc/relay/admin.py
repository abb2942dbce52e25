"""The operator's port, on loopback only: /healthz and /metrics. Reading, never changing."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

from fedhpc.errors import ConfigError
from fedhpc.relay.server import RelayServer

_LOCAL = {"127.0.0.1", "localhost", "[::1]", "::1"}
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def start_admin(server: RelayServer, host: str, port: int) -> int:
    """Serve the admin port from a thread of its own; the port's number."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10
        server_version = "fedhpc-relay"
        sys_version = ""

        def do_GET(self) -> None:
            # Another name for this address can only come from a browser that was lured here.
            if self.headers.get("Host", "").rsplit(":", 1)[0].strip("[]") not in {n.strip("[]") for n in _LOCAL}:
                self._answer(421, "text/plain", "ask 127.0.0.1\n")
            elif self.path == "/healthz":
                stopping = server.routes.stopping.is_set()
                self._answer(503 if stopping else 200, "text/plain", "stopping\n" if stopping else "ok\n")
            elif self.path == "/metrics":
                self._answer(200, METRICS_TYPE, server.metrics.text(gauges(server)))
            else:
                self._answer(404, "text/plain", "/healthz or /metrics\n")

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a scrape every few seconds is no news."""

    try:
        admin = http.server.ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"cannot listen on the admin port {host}:{port}: {error.strerror}") from None
    admin.daemon_threads = True
    threading.Thread(target=admin.serve_forever, name="admin", daemon=True).start()
    return int(admin.server_address[1])


def gauges(server: RelayServer) -> dict[tuple[str, str], float]:
    """What is true now: connections, objects, bytes, memory."""
    values: dict[tuple[str, str], float] = {("connections", ""): server.connections}
    for config, total in server.store.totals().items():
        label = f'federation="{config[:16]}"'
        values["stored_bytes", label] = total["bytes"]
        values["stored_objects", label] = total["objects"]
        values["uploads", label] = total["uploads"]
    for name, field in (("resident_bytes", "VmRSS"), ("peak_resident_bytes", "VmHWM")):
        values[name, ""] = memory(field)
    return values


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes; 0 where /proc has none."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(field + ":")), 0)
