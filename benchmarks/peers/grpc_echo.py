"""0.5 GB to one Flower node and back over TLS: ten arrays of a tenth each, through SuperLink and SuperNode.

The published echo (1 GB in all, 20.5 s on loopback, Flower 1.32.1 over gRPC) sends its arrays by a FedAvg of one node;
here a low-level message carries them, which spares the averaging. Flower speaks gRPC until 1.36 and HTTP since, so with
the environment of flower_grpc.txt this measures gRPC, and with that of flower.txt what came after it.
A round begins and ends with the arrays in the server app's memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ending import none_left
from flower_deployment import GRPC, POLL_S, deploy, said


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, default=125_000_000, help="numbers of four bytes")
    parser.add_argument("--sites", type=int, default=1, choices=[1])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    settings = {"params": args.params, "sites": 1, "rounds": args.rounds, "work": "echo"}
    try:
        with none_left():
            found = deploy(args.work.resolve(), settings)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return said(
        found,
        0.0,
        "flower deployment",
        "echo",
        settings={
            "transport": "gRPC" if GRPC else "HTTP",
            "tls": True,
            "arrays": 10,
            "bytes_each_way": 4 * args.params,
            "isolation": "subprocess",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL_S,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
