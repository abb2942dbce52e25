"""Which HTTPS server should carry the relay? 256 MiB up and down over TLS 1.3 with a client certificate, per candidate.

    python benchmarks/relay_servers.py [--mib 256] [--repeat 3] [--connections 1,4] [--json]

Each candidate runs in a process of its own and does the same minimum: it must know the peer's certificate, count a
PUT body and throw it away, and send N bytes for a GET from one fixed block. Beside them runs the bare yardstick: a
thread on a TLS 1.3 socket, no HTTP. Clients are processes too (bare TLS sockets that write a request head), so that
only the server differs. All rounds are interleaved (every candidate once, then again) and the median is shown, because
the machine is shared; the server's processor seconds per GiB are the steadier number.
Candidates that are not installed are skipped: pip install aiohttp cheroot h11 hypercorn uvloop
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedhpc.enrolment.certificates import issue_new, new_authority

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


# --- candidates: each serves PUT /up and GET /down?N on `port` until killed


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


def threads_h11(port: int, files: Files) -> None:
    """A thread per connection; h11 parses the head, the body is received in place."""
    import h11

    def handle(sock: ssl.SSLSocket) -> None:
        buffer = bytearray(BLOCK)
        while head := sock.recv(4096):
            while b"\r\n\r\n" not in head:
                head += sock.recv(4096)
            machine = h11.Connection(h11.SERVER, max_incomplete_event_size=16384)
            machine.receive_data(head)
            request = machine.next_event()
            assert isinstance(request, h11.Request)
            if request.method == b"PUT":
                count = int(dict(request.headers)[b"content-length"]) - (len(head) - head.index(b"\r\n\r\n") - 4)
                while count:
                    count -= sock.recv_into(buffer, min(count, BLOCK))
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            else:
                count = int(request.target.split(b"?")[1])
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % count)
                while count:
                    sock.sendall(memoryview(buffer)[: min(count, BLOCK)])
                    count -= min(count, BLOCK)

    _threads(port, files, handle)


def asyncio_h11(port: int, files: Files) -> None:
    """asyncio streams; h11 parses the head, the body is read from the stream."""
    import h11

    block = bytes(BLOCK)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                machine = h11.Connection(h11.SERVER, max_incomplete_event_size=16384)
                machine.receive_data(head)
                request = machine.next_event()
                assert isinstance(request, h11.Request)
                if request.method == b"PUT":
                    count = int(dict(request.headers)[b"content-length"])
                    while count:
                        count -= len(await reader.read(min(count, BLOCK)))
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                else:
                    count = int(request.target.split(b"?")[1])
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % count)
                    while count:
                        writer.write(memoryview(block)[: min(count, BLOCK)])
                        count -= min(count, BLOCK)
                        await writer.drain()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", port, ssl=server_context(files), limit=1 << 19)
        await server.serve_forever()

    asyncio.run(main())


def aiohttp_server(port: int, files: Files) -> None:
    """aiohttp on asyncio."""
    from aiohttp import web

    block = bytes(BLOCK)

    async def up(request: web.Request) -> web.Response:
        assert request.transport is not None
        assert request.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        async for _ in request.content.iter_any():
            pass
        return web.Response()

    async def down(request: web.Request) -> web.StreamResponse:
        count = int(request.query_string)
        response = web.StreamResponse(headers={"content-length": str(count)})
        await response.prepare(request)
        while count:
            await response.write(memoryview(block)[: min(count, BLOCK)])
            count -= min(count, BLOCK)
        return response

    app = web.Application(client_max_size=1 << 40)
    app.add_routes([web.put("/up", up), web.get("/down", down)])
    web.run_app(app, host="127.0.0.1", port=port, ssl_context=server_context(files), print=None)


def aiohttp_uvloop(port: int, files: Files) -> None:
    """aiohttp on uvloop."""
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    aiohttp_server(port, files)


def cheroot_server(port: int, files: Files) -> None:
    """cheroot: WSGI on a pool of threads."""
    from cheroot import wsgi
    from cheroot.ssl.builtin import BuiltinSSLAdapter

    block = bytes(BLOCK)

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes]:
        assert environ.get("SSL_CLIENT_VERIFY") == "SUCCESS"
        count = int(environ.get("CONTENT_LENGTH") or 0)
        if environ["REQUEST_METHOD"] == "PUT":
            while count:
                count -= len(environ["wsgi.input"].read(min(count, BLOCK)))
            start("200 OK", [("content-length", "0")])
            return
        count = int(environ["QUERY_STRING"])
        start("200 OK", [("content-length", str(count))])
        while count:
            yield block[: min(count, BLOCK)]
            count -= min(count, BLOCK)

    server = wsgi.Server(("127.0.0.1", port), app, numthreads=16)
    server.ssl_adapter = BuiltinSSLAdapter(files[0], files[1])
    server.ssl_adapter.context = server_context(files)
    server.start()


def hypercorn_server(port: int, files: Files) -> None:
    """hypercorn: ASGI; 0.18 does not pass the peer's certificate on, so this row shows speed only."""
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    block = bytes(BLOCK)

    async def app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            return
        count = 0
        if scope["method"] == "PUT":
            while (await receive()).get("more_body"):
                pass
        else:
            count = int(scope["query_string"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % count)]})
        while count:
            part = min(count, BLOCK)
            count -= part
            await send({"type": "http.response.body", "body": block[:part], "more_body": bool(count)})
        else:
            if scope["method"] == "PUT":
                await send({"type": "http.response.body", "body": b""})

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.certfile, config.keyfile, config.ca_certs = files
    config.verify_mode = ssl.CERT_OPTIONAL
    config.alpn_protocols = ["http/1.1"]
    asyncio.run(serve(app, config))  # type: ignore[arg-type]


CANDIDATES: dict[str, tuple[Callable[[int, Files], None], str]] = {
    "bare TLS socket": (bare, "ssl"),
    "threads + h11": (threads_h11, "h11"),
    "asyncio + h11": (asyncio_h11, "h11"),
    "aiohttp": (aiohttp_server, "aiohttp"),
    "aiohttp, uvloop": (aiohttp_uvloop, "uvloop"),
    "cheroot": (cheroot_server, "cheroot"),
    "hypercorn": (hypercorn_server, "hypercorn"),
}


# --- the client and the measurement


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


def measure(name: str, files: Files, total: int, connections: int) -> dict[str, float]:
    """Throughput up and down in bytes/s, the server's processor seconds per GiB, and its peak memory."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = context.Process(target=CANDIDATES[name][0], args=(port, files), daemon=True)
    server.start()
    assert server.pid is not None
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        ready, done = context.Barrier(connections + 1), context.Barrier(connections + 1)
        share = total // connections
        clients = [
            context.Process(target=client, args=(port, files, share, share, ready, done), daemon=True)
            for _ in range(connections)
        ]
        for each in clients:
            each.start()
        found: dict[str, float] = {}
        for way in ("up", "down"):
            ready.wait(60)
            begin, before = time.perf_counter(), cpu_s(server.pid)
            done.wait(120)
            found[way] = share * connections / (time.perf_counter() - begin)
            found[f"{way}_cpu"] = (cpu_s(server.pid) - before) * (1 << 30) / (share * connections)
        return found | {"peak_rss": float(peak_rss(server.pid))}
    finally:
        for each in multiprocessing.active_children():
            os.kill(each.pid or 0, signal.SIGKILL)
            each.join()


def main() -> None:
    """Measure all candidates and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--connections", default="1,4")
    parser.add_argument("--only", default="", help="candidates, separated by ';'")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = [n for n in CANDIDATES if not args.only or n in args.only.split(";")]
    for name in list(names):
        try:
            __import__(CANDIDATES[name][1])
        except ImportError:
            print(f"skipped, not installed: {name}", file=sys.stderr)
            names.remove(name)
    with tempfile.TemporaryDirectory() as folder:
        authority = new_authority()
        certificate, key = issue_new(authority, "bench").write(Path(folder), "bench")
        (Path(folder) / "ca.pem").write_bytes(authority.certificate)
        files = (str(certificate), str(key), f"{folder}/ca.pem")
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(args.repeat):
            for connections in map(int, args.connections.split(",")):
                for name in names:
                    one = measure(name, files, args.mib << 20, connections)
                    found.setdefault((name, connections), []).append(one)
    table = [
        {"server": name, "connections": count, **{k: statistics.median(r[k] for r in runs) for k in runs[0]}}
        for (name, count), runs in found.items()
    ]
    if args.json:
        print(json.dumps(table))
        return
    print("| server | connections | up MB/s | down MB/s | CPU s/GiB up | down | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    for row in table:
        up, down, peak = float(row["up"]) / 1e6, float(row["down"]) / 1e6, float(row["peak_rss"]) / (1 << 20)
        cpu = f"{row['up_cpu']:.2f} | {row['down_cpu']:.2f}"
        print(f"| {row['server']} | {row['connections']} | {up:.0f} | {down:.0f} | {cpu} | {peak:.0f} |")


if __name__ == "__main__":
    main()
