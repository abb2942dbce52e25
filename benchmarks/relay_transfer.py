"""What the real relay and the real client move, with hashes and disk, against a bare TLS 1.3 socket pair.

    python benchmarks/relay_transfer.py [--mib 256] [--repeat 3] [--json]

One site puts a vector over four connections and fetches it back; then four sites put and fetch one vector each at the
same time, from processes of their own. As in training, where finished rounds are dropped, each run finds page cache
that has been used before: a virtual machine's host hands out memory that it never gave before at under 1 GB/s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from relay_servers import cpu_s, measure, peak_rss

from fedhpc.exchange.http_client import RelayClient
from fedhpc.exchange.http_link import RelayAccess
from fedhpc.exchange.objects import ObjectName
from fedhpc.relay.certificates import issue_new, new_authority

CONFIG = "ab" * 32


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


def run(port: int, pid: int, pin: bytes, folder: str, sites: int, length: int) -> dict[str, float]:
    """All sites up, then all down: bytes/s of all together, and the relay's processor seconds per GiB."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(sites + 1), context.Barrier(sites + 1)
    arguments = [(port, pin, folder, number, length, ready, done) for number in range(1, sites + 1)]
    processes = [context.Process(target=site, args=a, daemon=True) for a in arguments]
    for process in processes:
        process.start()
    found = {}
    for way in ("up", "down"):
        ready.wait(60)
        begin, before = time.perf_counter(), cpu_s(pid)
        done.wait(200)
        found[way] = sites * length / (time.perf_counter() - begin)
        found[f"{way}_cpu"] = (cpu_s(pid) - before) * (1 << 30) / (sites * length)
    for process in processes:
        process.join()
    return found


def warm(path: Path, length: int) -> None:
    """Write and remove as much as a run will."""
    block = bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(length >> 20):
            file.write(block)
    path.unlink()


def main() -> None:
    """Measure, interleaved, and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
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
            'client_authorities = ["ca.pem"]\nstore = "store"\nrounds = false\n'
        )
        bare_files = (f"{folder}/relay.pem", f"{folder}/relay.key", f"{folder}/ca.pem")
        length = args.mib << 20
        for _ in range(args.repeat):
            rows.setdefault("bare TLS socket, 1", []).append(measure("bare TLS socket", bare_files, length, 1))
            rows.setdefault("bare TLS socket, 4", []).append(measure("bare TLS socket", bare_files, length, 4))
            for sites in (1, 4):
                warm(where / "warm", length)
                command = [sys.executable, "-m", "fedhpc", "relay", "serve", str(where / "relay.toml")]
                server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                assert server.stdout is not None
                port = int(server.stdout.readline().split("port ")[1].split(",")[0])
                one = run(port, server.pid, relay.pin(), folder, sites, length // sites)
                rows.setdefault(f"relay, {sites} site(s)", []).append(one | {"peak_rss": float(peak_rss(server.pid))})
                server.send_signal(signal.SIGTERM)
                server.wait()
                shutil.rmtree(where / "store")
    table = {name: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for name, runs in rows.items()}
    if args.json:
        print(json.dumps(table))
        return
    print("| what | up MB/s | down MB/s | server CPU s/GiB up | down | peak MiB |\n|---|---|---|---|---|---|")
    for name, row in table.items():
        cpu = f"{row['up_cpu']:.2f} | {row['down_cpu']:.2f} | {row['peak_rss'] / (1 << 20):.0f}"
        print(f"| {name} | {row['up'] / 1e6:.0f} | {row['down'] / 1e6:.0f} | {cpu} |")


if __name__ == "__main__":
    main()
