"""The echo of ours: one site puts the bytes to a relay over mutual TLS and takes them back, with hashes and disk.

With --node a second site, in a process of its own, fetches them and puts them back under another name, which is the way
that they go in grpc_echo.py: each byte crosses TLS four times in place of twice.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fedhpc import __version__
from fedhpc.enrolment.certificates import issue_new, new_authority
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.link import RelayAccess
from fedhpc.wire.object_names import ObjectName

CONFIG = "ab" * 32
STRIDE = 1024
CONNECTIONS = 4
FREE_FOR_ALL = Path(__file__).parents[2] / "tests" / "fakes" / "free_for_all.py"


def client(where: Path, number: int, port: int, pin: bytes) -> RelayClient:
    access = RelayAccess(f"https://127.0.0.1:{port}", pin, where / f"{number}.pem", where / f"{number}.key")
    return RelayClient(access, connections=CONNECTIONS)


def name(turn: int, site: int) -> ObjectName:
    return ObjectName(CONFIG, turn, 0, f"V/{site}")


def node(where: str, port: int, pin: bytes, params: int, rounds: int) -> None:
    """The second site: what the first one sent goes back, with every 1024th number one higher."""
    vector = np.empty(params, np.int32)
    view = memoryview(vector).cast("B")
    relay = client(Path(where), 2, port, pin)
    for turn in range(1, rounds + 1):
        if relay.get_into(name(turn, 1), view, wait_s=600) is None:
            sys.exit("nothing came")
        vector[::STRIDE] += 1
        relay.put(name(turn, 2), view)


def prepare(where: Path) -> bytes:
    """Certificates of two sites and a relay, with its settings; the relay's pin."""
    authority = new_authority()
    (where / "ca.pem").write_bytes(authority.certificate)
    relay = issue_new(authority, "relay")
    relay.write(where, "relay")
    sites = []
    for number in (1, 2):
        issued = issue_new(authority, str(number))
        issued.write(where, str(number))
        sites.append(f'{number} = "{issued.pin().hex()}"')
    (where / "roster.toml").write_text(f'["{CONFIG}"]\nsites = {{ {", ".join(sites)} }}\n')
    (where / "relay.toml").write_text(
        '[relay]\nlisten = "127.0.0.1:0"\ncertificate = "relay.pem"\nkey = "relay.key"\nroster = "roster.toml"\n'
        'client_authorities = ["ca.pem"]\nstore = "store"\n'
    )
    return relay.pin()


def echo(where: Path, port: int, pin: bytes, params: int, rounds: int, source: int) -> tuple[list[list[float]], bool]:
    """When each round began and ended, and whether all bytes came back; `source`: the site whose object is taken."""
    sent = np.random.default_rng(14).integers(-(2**31), 2**31, params, dtype=np.int32)
    back = np.zeros(params, np.int32)
    relay = client(where, 1, port, pin)
    relay.health()
    times, right = [], True
    for turn in range(1, rounds + 1):
        begin = time.monotonic()
        relay.put(name(turn, 1), memoryview(sent).cast("B"))
        right &= relay.get_into(name(turn, source), memoryview(back).cast("B"), wait_s=600) is not None
        times.append([begin, time.monotonic()])
        if source == 2:
            sent[::STRIDE] += 1
        right &= np.array_equal(sent, back)
        back[:] = 0
        sent[::STRIDE] += 1  # every round has new contents
    return times, right


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, default=125_000_000, help="numbers of four bytes")
    parser.add_argument("--sites", type=int, default=1, choices=[1])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--node", action="store_true")
    args = parser.parse_args()
    where = args.work.resolve()
    where.mkdir(parents=True, exist_ok=True)
    pin = prepare(where)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    command = [sys.executable, str(FREE_FOR_ALL), str(where / "relay.toml")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    second = None
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("port ")[1].split(",")[0])
        if args.node:
            words = (str(where), port, pin, args.params, args.rounds)
            second = multiprocessing.get_context("spawn").Process(target=node, args=words, daemon=True)
            second.start()
        times, right = echo(where, port, pin, args.params, args.rounds, 2 if args.node else 1)
    finally:
        for process in filter(None, [second, server]):
            process.terminate()
        server.wait()
        if second:
            second.join()
    result = {
        "system": "fedhpc",
        "version": __version__,
        "work": "echo",
        "first": times[0],
        "rounds": times[1:],
        "verified": right,
        "error": float(not right),
        "tolerance": 0.0,
        "server_pids": [server.pid],
        "settings": {
            "transport": "HTTPS",
            "tls": "1.3, mutual",
            "connections": CONNECTIONS,
            "bytes_each_way": 4 * args.params,
            "through": "relay and a second site" if args.node else "relay",
        },
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "cryptography")}
        | {"openssl": ssl.OPENSSL_VERSION},
    }
    print(json.dumps(result))
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
