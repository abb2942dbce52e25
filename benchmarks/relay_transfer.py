"""What the real relay and the real client move, with hashes and disk, against a bare TLS 1.3 socket pair.

    python benchmarks/relay_transfer.py [--mib 512] [--repeat 5] [--json]

One site puts a vector over four connections and fetches it back; then four sites put and fetch one vector each at the
same time, from processes of their own. `--mib` counts the bytes of all sites.

Each upload finds page cache that was used a moment ago, as on a machine of its own. A virtual machine may give free
memory back to its host within seconds, and then pays 1 s/GiB for having it handed out again; that is its host's speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bare_tls import bare, client, cpu_s, peak_rss

from fedhpc.enrolment.certificates import issue_new, new_authority
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.link import RelayAccess
from fedhpc.wire.object_names import ObjectName

CONFIG = "ab" * 32
FREE_FOR_ALL = Path(__file__).parents[1] / "tests" / "fakes" / "free_for_all.py"


def site(port: int, pin: bytes, folder: str, number: int, length: int, ready: Any, done: Any) -> None:
    """One site: put a vector, fetch it back into the same memory."""
    where = Path(folder)
    access = RelayAccess(f"https://127.0.0.1:{port}", pin, where / f"{number}.pem", where / f"{number}.key")
    client = RelayClient(access, connections=4)
    view = memoryview(bytearray(np.random.default_rng(number).bytes(length)))
    name = ObjectName(CONFIG, 1, 0, f"V/{number}")
    client.health()
    ready.wait()
    client.put(name, view)
    done.wait()
    ready.wait()
    client.get_into(name, view)
    done.wait()
    done.wait()


def moved(
    processes: list[Any], server: int, ready: Any, done: Any, total: int, before_up: Callable[[], None] | None = None
) -> dict[str, float]:
    """All up, then all down: bytes/s of all together, processor seconds per GiB of the server and of the others."""
    found = {}
    for way in ("up", "down"):
        while ready.n_waiting < len(processes):
            time.sleep(0.01)
        if before_up and way == "up":
            before_up()
        ready.wait(60)
        begin = time.perf_counter()
        before = cpu_s(server), sum(cpu_s(p.pid) for p in processes)
        done.wait(200)
        found[way] = total / (time.perf_counter() - begin)
        after = cpu_s(server), sum(cpu_s(p.pid) for p in processes)
        for who, first, last in zip(("server", "sites"), before, after, strict=True):
            found[f"{way}_{who}"] = (last - first) * (1 << 30) / total
    done.wait(60)  # the processes have waited to be measured
    return found


def start(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> tuple[list[Any], Any, Any]:
    """A process per tuple of arguments, to which the barriers `ready` and `done` are added."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(len(arguments) + 1), context.Barrier(len(arguments) + 1)
    processes = [context.Process(target=target, args=(*a, ready, done), daemon=True) for a in arguments]
    for process in processes:
        process.start()
    return processes, ready, done


def bare_client(port: int, files: tuple[str, str, str], length: int, ready: Any, done: Any) -> None:
    """A bare socket instead of a site."""
    client(port, files, length, length, ready, done)
    done.wait()


def run_bare(files: tuple[str, str, str], connections: int, length: int) -> dict[str, float]:
    """The yardstick: a TLS socket per site, no HTTP, no hash, no disk; each side reuses one block of memory."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=bare, args=(port, files), daemon=True)
    server.start()
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    try:
        processes, ready, done = start(bare_client, [(port, files, length // connections)] * connections)
        found = moved(processes, server.pid or 0, ready, done, length)
        for process in processes:
            process.join()
        return found | {"peak_rss": float(peak_rss(server.pid or 0))}
    finally:
        server.kill()
        server.join()


def run_relay(where: Path, pin: bytes, sites: int, length: int) -> dict[str, float]:
    """A relay of its own for one run."""
    command = [sys.executable, str(FREE_FOR_ALL), str(where / "relay.toml")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline().split("port ")[1].split(",")[0])
    arguments = [(port, pin, str(where), number, length // sites) for number in range(1, sites + 1)]
    processes, ready, done = start(site, arguments)
    found = moved(processes, server.pid, ready, done, length, lambda: warm(where / "warm", 2 * length))
    for process in processes:
        process.join()
    found["peak_rss"] = float(peak_rss(server.pid))
    server.send_signal(signal.SIGTERM)
    server.wait()
    shutil.rmtree(where / "store")
    return found


def warm(path: Path, length: int) -> None:
    """Write and remove a file, for its memory."""
    block = bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(length >> 20):
            file.write(block)
    path.unlink()


def main() -> None:
    """Measure, interleaved, and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        authority = new_authority()
        where = Path(folder)
        (where / "ca.pem").write_bytes(authority.certificate)
        relay = issue_new(authority, "relay")
        relay.write(where, "relay")
        pins = []
        for number in range(1, 5):
            issued = issue_new(authority, str(number))
            issued.write(where, str(number))
            pins.append(f'{number} = "{issued.pin().hex()}"')
        (where / "roster.toml").write_text(f'["{CONFIG}"]\nsites = {{ {", ".join(pins)} }}\n')
        (where / "relay.toml").write_text(
            '[relay]\nlisten = "127.0.0.1:0"\ncertificate = "relay.pem"\nkey = "relay.key"\nroster = "roster.toml"\n'
            'client_authorities = ["ca.pem"]\nstore = "store"\n'
        )
        bare_files = (f"{folder}/relay.pem", f"{folder}/relay.key", f"{folder}/ca.pem")
        length = args.mib << 20
        for _ in range(args.repeat):
            for sites in (1, 4):
                rows.setdefault(f"bare TLS socket, {sites}", []).append(run_bare(bare_files, sites, length))
                rows.setdefault(f"relay, {sites} site(s)", []).append(run_relay(where, relay.pin(), sites, length))
    table = {name: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for name, runs in rows.items()}
    if args.json:
        print(json.dumps(table))
        return
    print("| what | up MB/s | CPU s/GiB server | sites | down MB/s | CPU s/GiB server | sites | peak MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in table.items():
        ways = [f"{row[w] / 1e6:.0f} | {row[w + '_server']:.2f} | {row[w + '_sites']:.2f}" for w in ("up", "down")]
        print(f"| {name} | {' | '.join(ways)} | {row['peak_rss'] / (1 << 20):.0f} |")
    for sites in (1, 4):
        shares = {
            w: table[f"relay, {sites} site(s)"][w] / table[f"bare TLS socket, {sites}"][w] for w in ("up", "down")
        }
        print(f"{sites} site(s): {shares['up']:.0%} of the bare sockets up, {shares['down']:.0%} down")


if __name__ == "__main__":
    main()
