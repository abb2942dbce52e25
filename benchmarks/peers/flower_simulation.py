"""Flower's simulation engine on Ray: FedAvg, or with --secure SecAgg+.

Settings: one processor for each client, so that as many run at a time as there are cores; no rounds of evaluation; Ray
without its memory monitor, which would end a client before the machine is full, without usage statistics and dashboard.
Ray's daemons listen on the machine's own address; it replaces the loopback address where it is told that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ending import none_left


def simulate(settings: dict[str, Any], temporary: str) -> None:
    """Run it in this process; Ray starts the clients' processes."""
    import flower_app
    from flwr.server import ServerApp
    from flwr.simulation import run_simulation

    server = ServerApp()

    @server.main()
    def main(grid: Any, context: Any) -> None:
        flower_app.serve(grid, context, settings)

    run_simulation(
        server_app=server,
        client_app=flower_app.secure_client_app if settings["work"] == "secure" else flower_app.client_app,
        num_supernodes=settings["sites"],
        backend_name="ray",
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count(), "_temp_dir": temporary},
        },
    )


def result(settings: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What the script prints."""
    import importlib.metadata

    import flower_app

    work, rounds, sites = settings["work"], settings["rounds"], settings["sites"]
    allowed, error = flower_app.tolerance(work, rounds, sites), max(found["errors"], default=math.inf)
    return {
        "system": "flower simulation",
        "version": importlib.metadata.version("flwr"),
        "work": "secure aggregation" if work == "secure" else "plain FedAvg",
        "first": found["rounds"][0],
        "rounds": found["rounds"][1:],
        "verified": len(found["errors"]) == rounds and error <= allowed,
        "error": error,
        "tolerance": allowed,
        "server_pids": [found["pid"]],
        "settings": {
            "client_resources": {"num_cpus": 1},
            "RAY_memory_monitor_refresh_ms": 0,
            "fraction_evaluate": 0.0,
        }
        | ({"num_shares": sites, "reconstruction_threshold": sites - 1} if work == "secure" else {}),
        "versions": {name: importlib.metadata.version(name) for name in ("ray", "numpy")},
    }


def main() -> int:
    """Run the engine in a child, so that this process can end whatever Ray leaves behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, required=True)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--secure", action="store_true")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = {
        "params": args.params,
        "sites": args.sites,
        "rounds": args.rounds,
        "work": "secure" if args.secure else "plain",
        "report": str(args.work.resolve() / "report.json"),
    }
    report = Path(settings["report"])
    if args.inside:
        simulate(settings, args.inside)
        print(json.dumps(result(settings, json.loads(report.read_text()))))
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    # Its sockets have paths of at most 107 letters, so it is not under --work.
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_HOME": str(args.work.resolve() / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    try:
        with none_left(), (args.work / "engine.log").open("wb") as log:
            child = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--inside", temporary],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    found = json.loads(report.read_text()) if report.exists() else {"failure": "it wrote no report"}
    lines = child.stdout.splitlines()
    if child.returncode or found["failure"] or not lines:
        last = (args.work / "engine.log").read_text(errors="replace").strip().splitlines()[-1:]
        print(f"the simulation ended with {child.returncode}: {found['failure'] or last}", file=sys.stderr)
        return 1
    print(lines[-1])
    if not json.loads(lines[-1])["verified"]:
        print("the average is not what it must be", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
