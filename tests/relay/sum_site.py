"""Sites that sum small vectors through a relay and say what each sum cost, for tests and benchmarks.

As a program it is one site: sum_site.py FEDERATION SITE_TOML RUN SUMS NUMBERS, a JSON line per sum of NUMBERS integers.
`requests` are all requests of the site in that sum. `turns` is the longest chain of requests of which each was sent
after the answer to the one before had come: what a sum pays in round trips, whatever the network's speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np

import fedhpc
from fedhpc.enrolment.one_machine import Enrolled, enrol
from fedhpc.transport.https.link import Link

ROOT = Path(__file__).parents[2]
SECTIONS = '[cohort]\npolicy = "sync"\n[task]\nname = "logistic"\n'

Interval = tuple[float, float, str]


def sum_federation(folder: Path, sites: int = 3) -> Enrolled:
    """A federation of sites without data, enrolled in `folder`."""
    return enrol(folder, "sums", SECTIONS, {f"s{u}": folder / "no-data" for u in range(1, sites + 1)})


def site_command(federation: Path, site_file: Path, run: Path, sums: int, numbers: int = 2) -> list[str]:
    """The command of one site."""
    words = (Path(__file__), federation, site_file, run, sums, numbers)
    return [sys.executable, *(str(word) for word in words)]


def site_environment() -> dict[str, str]:
    """One thread, this checkout, no proxy."""
    plain = {k: v for k, v in os.environ.items() if k.lower() not in ("https_proxy", "http_proxy", "all_proxy")}
    return plain | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def finish_sites(processes: Sequence[subprocess.Popen[str]], timeout: float = 120) -> list[list[dict[str, Any]]]:
    """What each site printed, by site and sum. Raises AssertionError with the messages of a site that failed."""
    deadline = time.monotonic() + timeout
    try:
        printed = [p.communicate(timeout=max(1.0, deadline - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, f"exit code {process.returncode}\n{errors}"
    return [[json.loads(line) for line in out.splitlines()] for out, _ in printed]


def run_sums(
    enrolled: Enrolled, port: int, sums: int, numbers: int = 2, within: Sequence[str] = ()
) -> list[list[dict[str, Any]]]:
    """All sites at once, each dialling `port` in place of the relay's; what each printed, by site and sum.

    Called again it goes on with the next rounds. `within`: words in front of each site's command.
    """
    processes = []
    for name in enrolled.sites:
        site_file = enrolled.site_file(name)
        text = site_file.read_text().replace(f'"{enrolled.url}"', f'"https://127.0.0.1:{port}"')
        through = site_file.with_name(f"through-{port}.toml")
        through.write_text(text)
        command = [*within, *site_command(enrolled.federation, through, enrolled.folder / "run", sums, numbers)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, env=site_environment(), **pipes))
    return finish_sites(processes)


def record(into: list[Interval]) -> None:
    """Note when each request of this process is sent and when the head of its answer is there."""
    send_head, response = Link.send_head, Link.response
    begun: dict[int, tuple[float, str]] = {}

    def noted_send(link: Link, method: str, path: str, *rest: Any, **more: Any) -> None:
        begun[id(link)] = (time.monotonic(), f"{method} {path[path.find('/', len('/v1/objects/')) :]}")
        send_head(link, method, path, *rest, **more)

    def noted_response(link: Link, *rest: Any, **more: Any) -> HTTPResponse:
        try:
            return response(link, *rest, **more)
        finally:
            into.append((begun[id(link)][0], time.monotonic(), begun[id(link)][1]))

    Link.send_head, Link.response = noted_send, noted_response  # type: ignore[method-assign]


def longest_chain(intervals: Sequence[Interval]) -> list[str]:
    """The most requests that followed one another without overlap."""
    chain: list[str] = []
    last = 0.0
    for begun, ended, what in sorted(intervals, key=lambda i: i[1]):
        if begun >= last:
            chain.append(what)
            last = ended
    return chain


def main(federation: str, site: str, run: str, sums: str, numbers: str) -> None:
    seen: list[Interval] = []
    record(seen)
    with fedhpc.join(federation, site=site, run=run) as fed:
        me = fed.sites.index(fed.site) + 1
        for number in range(int(sums)):
            seen.clear()
            begun = time.perf_counter()
            got = fed.sum({"n": np.full(int(numbers), me * (number + 1), np.int64)})["n"]
            seconds = time.perf_counter() - begun
            chain = longest_chain(seen)
            cost = {"seconds": seconds, "requests": len(seen), "turns": len(chain), "chain": chain}
            print(json.dumps(cost | {"low": int(got.min()), "high": int(got.max())}), flush=True)
        fed.forget()  # the next call sums other numbers


if __name__ == "__main__":
    main(*sys.argv[1:])
