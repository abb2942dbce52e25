"""One enrolled site that floods a running relay: the others' round ends all the same.

What such a site can do to the coordinator alone is tried in unit/relay/test_relay_hostile_site.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PATIENCE
from relay_process import CONFIG, Relay, World, noise
from round_sites import Sites

from fedhpc.errors import FedhpcError
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.wire.kinds import MAX_TENSORS

# Beside other tests an honest site that is slow must not be taken for the hostile one.
COHORT = f'policy = "buffered"\nanswer_s = {PATIENCE:.1f}\nupload_s = {2 * PATIENCE:.1f}\n'
HOSTILE, HONEST = 4, [1, 2, 3]


@pytest.fixture
def sites(world: World, tmp_path: Path) -> Iterator[Sites]:
    """Four sites and a relay that runs rounds."""
    relay = Relay(world, tmp_path, roster=f'{world.roster()}\n["{CONFIG}".cohort]\n{COHORT}').start()
    yield Sites(relay)
    relay.stop()


def ends_without_it(sites: Sites, attempt: int) -> None:
    """The honest sites upload and open their sum; the fourth sends nothing any more."""
    sites.upload(attempt, HONEST, {u: noise(80, u) for u in HONEST})
    assert json.loads(sites.get(attempt, "M4r"))["u3"] == HONEST
    sites.finish(attempt, HONEST)
    assert json.loads(sites.get(0, "DONE")) == {"attempt": attempt, "u3": HONEST}


def test_a_site_that_is_ready_with_all_that_the_relay_takes(sites: Sites) -> None:
    """On eight connections, again and again, as long as the others' round lasts."""
    with pytest.raises(RelayProblem, match="too-large"):
        sites.ready(HOSTILE, tensors=[[32, 1]] * (1 << 16))
    stop, slowed = threading.Event(), threading.Event()
    relay = sites.relay

    def flood(number: int) -> None:
        client = RelayClient(relay.world.access(relay.port, f"site{HOSTILE}"), 1, Patience(0.0, 0.01, 0.01))
        mine = Sites(relay)
        mine.clients[HOSTILE] = client
        count = 0
        while not stop.is_set():
            count += 1
            try:
                mine.ready(HOSTILE, tensors=[[32, 1]] * MAX_TENSORS, purpose=f"p{number}-{count}")
            except FedhpcError as error:  # also where it has met another of its own, and when the round is over
                if "too-often" in error.what:
                    slowed.set()

    floods = [threading.Thread(target=flood, args=(n,), daemon=True) for n in range(8)]
    for thread in floods:
        thread.start()
    try:
        assert slowed.wait(60)
        sites.ready(*HONEST)
        proposed = [u for u, _ in json.loads(sites.get(1, "M0"))["cohort"]]
        sites.agree(1, [u for u in proposed if u in HONEST])
        ends_without_it(sites, 1)
    finally:
        stop.set()
        for thread in floods:
            thread.join(60)
