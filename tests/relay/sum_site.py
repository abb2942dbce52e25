"""One site that sums small vectors through a relay and says what they cost: a JSON line per sum.

sum_site.py FEDERATION SITE_TOML RUN SUMS

`requests` are all requests of the site's leader in that sum. `turns` is the longest chain of requests of which each was
sent after the answer to the one before had come: what a sum pays in round trips, whatever the network's speed.
"""

from __future__ import annotations

import json
import sys
import time
from http.client import HTTPResponse
from typing import Any

import numpy as np

import fedhpc
from fedhpc.exchange.http_link import Link

Interval = tuple[float, float, str]


def record(into: list[Interval]) -> None:
    """Note when each request of this process is sent and when the head of its answer is there."""
    send_head, response = Link.send_head, Link.response
    begun: dict[int, tuple[float, str]] = {}

    def noted_send(link: Link, method: str, path: str, *rest: Any, **more: Any) -> None:
        begun[id(link)] = (time.monotonic(), f"{method} {path[path.find('/', 60) :]}")
        send_head(link, method, path, *rest, **more)

    def noted_response(link: Link, *rest: Any, **more: Any) -> HTTPResponse:
        try:
            return response(link, *rest, **more)
        finally:
            into.append((begun[id(link)][0], time.monotonic(), begun[id(link)][1]))

    Link.send_head, Link.response = noted_send, noted_response  # type: ignore[method-assign]


def longest_chain(intervals: list[Interval]) -> list[str]:
    """The most requests that followed one another without overlap."""
    chain: list[str] = []
    last = 0.0
    for begun, ended, what in sorted(intervals, key=lambda i: i[1]):
        if begun >= last:
            chain.append(what)
            last = ended
    return chain


def main(federation: str, site: str, run: str, sums: str) -> None:
    seen: list[Interval] = []
    record(seen)
    with fedhpc.join(federation, site=site, run=run) as fed:
        me = fed.sites.index(fed.site) + 1
        for number in range(int(sums)):
            seen.clear()
            begun = time.perf_counter()
            got = fed.sum({"n": np.array([me, number], np.int64)}, name=f"small {number}")
            chain = longest_chain(seen)
            cost = {
                "seconds": time.perf_counter() - begun,
                "requests": len(seen),
                "turns": len(chain),
                "chain": chain,
                "sum": got["n"].tolist(),
            }
            print(json.dumps(cost), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
