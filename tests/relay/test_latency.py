"""How many round trips a sum over a far relay takes: counted, never timed (benchmarks/latency_sweep.py measures)."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from sum_site import longest_chain, run_sums, sum_federation

from fedhpc.bench.shaped_line import Line
from fedhpc.enrolment.one_machine import running_relay

FAR_S = 0.04  # one way: requests that do not wait for one another overlap also on a busy machine


@pytest.fixture(scope="module")
def far_sums(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[dict[str, Any]]]]:
    """What three sites paid for sums over a far relay, by the vector's length: small, and of two blocks."""
    enrolled = sum_federation(tmp_path_factory.mktemp("far"))
    with running_relay(enrolled.relay), Line(enrolled.port, FAR_S) as line:
        return {n: run_sums(enrolled, line.port, 4, n) for n in (2, 200_000)}


def test_sums_are_right(far_sums: dict[int, list[list[dict[str, Any]]]]) -> None:
    for costs in far_sums.values():
        assert [(c["low"], c["high"]) for c in costs[0]] == [(6, 6), (12, 12), (18, 18), (24, 24)]


def test_a_small_sum_has_eight_turns(far_sums: dict[int, list[list[dict[str, Any]]]]) -> None:
    """READY, M1, M2, upload with M3, M4, M5, download, M6: beyond upload and download, three come after the vector."""
    for site, costs in enumerate(far_sums[2], start=1):
        assert {c["requests"] for c in costs} == {17}, costs
        best = min(costs, key=lambda c: int(c["turns"]))
        assert best["turns"] == 8, "\n".join(best["chain"])
        # READY, M1 and M2 need no vector; then the upload with M3, M4, M5, the download, M6.
        assert [number for number, what in enumerate(best["chain"]) if what.endswith("/Y")] == [6], f"site {site}"


def test_a_larger_vector_costs_one_turn_more_each_way(far_sums: dict[int, list[list[dict[str, Any]]]]) -> None:
    for costs in far_sums[200_000]:
        best = min(costs, key=lambda c: int(c["turns"]))
        assert best["turns"] == 10, "\n".join(best["chain"])


def test_chains() -> None:
    overlapping = [(0.0, 4.0, "poll"), (0.5, 1.0, "a"), (1.0, 2.0, "b"), (1.5, 3.0, "beside b"), (3.5, 5.0, "c")]
    assert longest_chain(overlapping) == ["a", "b", "c"]


def test_a_line_keeps_order_and_every_byte() -> None:
    """Many connections at once, both directions, with a delay and a rate."""
    data = bytes(range(256)) * 2048
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=send_back, args=(peer,), daemon=True).start()

        def send_back(peer: socket.socket) -> None:
            with peer:
                while piece := peer.recv(65536):
                    peer.sendall(piece)

        threading.Thread(target=echo, daemon=True).start()
        with Line(server.getsockname()[1], 0.01, bytes_per_s=20e6) as line:
            back: list[bytes] = []

            def ask() -> None:
                with socket.create_connection(("127.0.0.1", line.port), 20) as sock:
                    threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR))).start()
                    got = b""
                    while piece := sock.recv(65536):
                        got += piece
                    back.append(got)

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert back == [data] * 8
            assert line.connections == 8
