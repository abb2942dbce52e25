"""What every rank of a site does in a round over the relay: hide and send its part, fetch and open the sum's."""

from __future__ import annotations

import time

from fedhpc.errors import InterruptedRun
from fedhpc.federation.party import Party, SumPlan
from fedhpc.federation.stages import Stages
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.over_relay.orders import CLOSED, CUT_OFF, HideOrder, OpenOrder, SumFetch, Upload
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.transport import Transport
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName

_CLOSED = ("round-over", "too-late", "forbidden")


def upload_part(
    party: Party, client: Transport, engine: BlockEngine, plan: SumPlan, order: HideOrder, stages: Stages
) -> Upload | None:
    """Hide and send this rank's part; at the leader the whole upload, None if the set was closed before its end."""
    begun = time.perf_counter()
    low, high = engine.part
    length = engine.vector.layout.nbytes
    engine.begin_hiding(list(order.streams), order.tag_key)
    name = _name(party, plan, order.attempt, f"M3v/{party.number}")
    late, digests = b"", b""
    suite = party.agreement.secure.tree
    data: memoryview | None = None
    try:
        if length <= BLOCK_BYTES and high > low:
            engine.hide(low, high)
            data = engine.memory().data
            digests = suite.block(data)
        elif high > low:
            outgoing = client.upload(name, length, resume=order.resume)
            outgoing.write(low, engine.memory().data, engine.hide)
            digests = b"".join(outgoing.digests[i] for i in sorted(outgoing.digests))
    except RelayProblem as problem:
        if problem.kind not in _CLOSED:
            raise
        late = CLOSED
    except InterruptedRun:
        late = CUT_OFF
    stages.wire += time.perf_counter() - begun
    return Upload.of(name, length, party.site.gather_bytes(late or engine.tag.to_bytes() + digests), data, suite)


def fetch_part(
    party: Party, client: Transport, engine: BlockEngine, plan: SumPlan, order: OpenOrder, stages: Stages
) -> SumFetch | None:
    """Fetch and open this rank's part of the sum; None if the relay no longer keeps it."""
    begun = time.perf_counter()
    engine.begin_opening(list(order.streams), order.tag_key)
    low, high = engine.part
    length = engine.vector.layout.nbytes
    hashed: dict[int, bytes] | None = {}
    lost = CLOSED
    if high > low:
        view = engine.memory().data
        try:
            hashed = client.fetch_part(_name(party, plan, order.attempt, "Y"), length, low, view, engine.open)
        except RelayProblem as problem:
            if problem.kind not in (*_CLOSED, "absent"):
                raise
            hashed = None
        except InterruptedRun:
            hashed, lost = None, CUT_OFF
    stages.wire += time.perf_counter() - begun
    mine = lost
    if hashed is not None:
        digests = [hashed[i] for i in sorted(hashed)] + engine.opened_digests()
        mine = engine.tag.to_bytes() + b"".join(digests)
    return SumFetch.of(length, party.site.gather_bytes(mine), party.agreement.secure.tree, names_sum=plan.names_sum)


def _name(party: Party, plan: SumPlan, attempt: int, name: str) -> ObjectName:
    return ObjectName(party.agreement.hash.hex(), plan.round_, attempt, name)
