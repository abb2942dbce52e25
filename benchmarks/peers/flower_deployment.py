"""Flower's deployment engine, with --tls over TLS: SuperLink, a SuperNode for each site; FedAvg or --secure SecAgg+.

Settings: Flower starts a new process for every message to a node, whether SuperNode or an operator starts SuperExec
(--isolation), and no setting keeps one; so subprocess isolation it is. SuperExec looks for work four times a second
(FLWR_SUPEREXEC_TASK_POLL_INTERVAL), and so does the server app for replies. No dependencies are installed at run time,
and there are no rounds of evaluation. Arrays go in pieces of 5 MiB, SecAgg+'s masked vector as one object of at most
2 GiB: no limit is near.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import ipaddress
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ending import descendants, none_left

HOST = "127.0.0.1"
HERE = Path(__file__).parent
BINARIES = Path(sys.executable).parent
VERSION = importlib.metadata.version("flwr")
# Until 1.36 SuperLink and SuperNode spoke gRPC, with ports of their own for each interface.
GRPC = tuple(int(part) for part in VERSION.split(".")[:2]) < (1, 37)
POLL_S = "0.25"  # instead of 1; 0.02 took three times the processor time and no less time on two cores
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "peer"
version = "1.0.0"
description = "adds and averages"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "flower_app:server_app"
clientapp = "flower_app:CLIENT"

[tool.flwr.app.config]
SETTINGS
"""


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server((HOST, 0))).getsockname()[1] for _ in range(count)]


def issue(where: Path) -> None:
    """An authority of our own, and a certificate of it for this address."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def build(name: str, key: Any, issuer: str, signer: Any, *extensions: tuple[Any, bool]) -> Any:
        now = datetime.datetime.now(datetime.UTC)
        made = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(minutes=5),
            not_valid_after=now + datetime.timedelta(days=1),
        )
        for extension, critical in (
            *extensions,
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
        ):
            made = made.add_extension(extension, critical)
        return made.sign(signer, hashes.SHA256())

    def pem(certificate: Any) -> bytes:
        return bytes(certificate.public_bytes(serialization.Encoding.PEM))

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    root = build(
        "authority",
        authority,
        "authority",
        authority,
        (x509.BasicConstraints(True, None), True),
        (x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **usage), True),
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")])
    leaf = build("server", server, "authority", authority, (x509.BasicConstraints(False, None), True), (names, False))
    (where / "ca.pem").write_bytes(pem(root))
    (where / "server.pem").write_bytes(pem(leaf))
    (where / "server.key").write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def write_app(where: Path, settings: dict[str, Any]) -> None:
    """The app as `flwr run` wants it: a folder with a project file, in which the run's settings are."""
    where.mkdir()
    for name in ("flower_app.py", "vectors.py"):
        shutil.copy(HERE / name, where)
    client = "secure_client_app" if settings["work"] == "secure" else "client_app"
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    (where / "pyproject.toml").write_text(PROJECT.replace("CLIENT", client).replace("SETTINGS", lines))


def wait_for(port: int, process: subprocess.Popen[bytes], what: str) -> None:
    """Until somebody listens."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        if process.poll() is not None:
            raise RuntimeError(f"{what} ended with {process.returncode}")
        time.sleep(0.1)


def start(where: Path, log: str, environment: dict[str, str], *command: str) -> subprocess.Popen[bytes]:
    with (where / log).open("wb") as output:
        return subprocess.Popen(
            [str(BINARIES / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=where,
        )


def deploy(where: Path, settings: dict[str, Any], *, tls: bool = True) -> dict[str, Any]:
    """Start all, run the app once, and give what its server wrote down, with the processes on the server's side."""
    where.mkdir(parents=True, exist_ok=True)
    issue(where)
    settings["report"] = str(where / "report.json")
    write_app(where / "app", settings)
    home = where / "flwr"
    home.mkdir()
    environment = os.environ | {
        "PATH": f"{BINARIES}:{os.environ['PATH']}",  # SuperExec starts commands by their names
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL_S,
        "no_proxy": "127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    sites = int(settings["sites"])
    ports = free_ports(3 + sites)
    control, fleet = ports[0], ports[1] if GRPC else ports[0]
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "peer"\n[superlink.peer]\naddress = "{HOST}:{control}"\n'
        + (f'root-certificates = "{where / "ca.pem"}"\n' if tls else "insecure = true\n")
    )
    served: tuple[str, ...] = (
        "--ssl-certfile",
        "server.pem",
        "--ssl-keyfile",
        "server.key",
        "--ssl-ca-certfile",
        "ca.pem",
    )
    checked: tuple[str, ...] = ("--root-certificates", "ca.pem")
    if not tls:
        served = checked = ("--insecure",)
    if GRPC:
        places = ("--control-api-address", f"{HOST}:{control}", "--fleet-api-address", f"{HOST}:{fleet}")
        places += ("--serverappio-api-address", f"{HOST}:{ports[2]}")
    else:
        places = ("--host", HOST, "--port", str(control))
    link = start(where, "superlink.log", environment, "flower-superlink", *served, *places)
    for port in {control, fleet}:
        wait_for(port, link, "SuperLink")
    nodes = []
    for number, port in enumerate(ports[3:]):
        own = ("--clientappio-api-address", f"{HOST}:{port}") if GRPC else ("--host", HOST, "--port", str(port))
        command = ("flower-supernode", "--superlink", f"{HOST}:{fleet}", *checked, *own)
        config = ("--node-config", f"partition-id={number} num-partitions={sites}")
        nodes.append(start(where, f"supernode{number}.log", environment, *command, *config))
    for number, port in enumerate(ports[3:]):
        wait_for(port, nodes[number], f"SuperNode {number}")
    submit = start(where, "run.log", environment, "flwr", "run", "app", "peer")
    if submit.wait():
        raise RuntimeError(f"`flwr run` ended with {submit.returncode}: {last_line(where / 'run.log')}")
    found = wait_for_report(Path(settings["report"]), [link, *nodes], where)
    if found["failure"]:
        raise RuntimeError(f"the run failed: {found['failure']}")
    return found | {"server_pids": sorted({link.pid, found["pid"], *descendants(link.pid)})}


def wait_for_report(report: Path, daemons: list[subprocess.Popen[bytes]], where: Path) -> dict[str, Any]:
    """Until the server wrote it, unless a daemon or the server's process ended before."""
    begin, seen = time.monotonic(), False
    while not report.exists():
        for number, daemon in enumerate(daemons):
            if daemon.poll() is not None:
                who = f"SuperNode {number - 1}" if number else "SuperLink"
                raise RuntimeError(f"{who} ended with {daemon.returncode}")
        alive = any(serves(pid) for pid in descendants(daemons[0].pid))
        if not alive and not report.exists() and (seen or time.monotonic() - begin > 300):
            raise RuntimeError(f"no server app runs: {last_line(where / 'superlink.log')}")
        seen = seen or alive
        time.sleep(0.5)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def serves(pid: int) -> bool:
    """Whether a process is a server app."""
    with contextlib.suppress(OSError):
        return b"flwr-serverapp" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def last_line(log: Path) -> str:
    return next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")


def said(found: dict[str, Any], allowed: float, system: str, work: str, **more: Any) -> int:
    """Print the result; the exit status."""
    error = max(found["errors"], default=math.inf)
    right = len(found["errors"]) == len(found["rounds"]) and error <= allowed
    result = {
        "system": system,
        "version": VERSION,
        "work": work,
        "first": found["rounds"][0],
        "rounds": found["rounds"][1:],
        "verified": right,
        "error": error,
        "tolerance": allowed,
        "server_pids": found["server_pids"],
        "versions": {name: importlib.metadata.version(name) for name in ("grpcio", "numpy", "cryptography")},
    }
    print(json.dumps(result | more))
    if not right:
        print("the result is not what it must be", file=sys.stderr)
    return int(not right)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, required=True)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--secure", action="store_true")
    parser.add_argument("--tls", action="store_true")
    args = parser.parse_args()
    work = "secure" if args.secure else "plain"
    settings = {"params": args.params, "sites": args.sites, "rounds": args.rounds, "work": work}
    try:
        with none_left():
            found = deploy(args.work.resolve(), settings, tls=args.tls)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    from flower_app import tolerance

    shares = {"num_shares": args.sites, "reconstruction_threshold": args.sites - 1} if args.secure else {}
    return said(
        found,
        tolerance(work, args.rounds, args.sites),
        "flower deployment",
        "secure aggregation" if args.secure else "plain FedAvg",
        settings={
            "tls": args.tls,
            "isolation": "subprocess",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL_S,
            "replies_looked_for_s": 0.25,
        }
        | shares,
    )


if __name__ == "__main__":
    sys.exit(main())
