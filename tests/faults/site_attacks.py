"""What a hostile site does to the others in round 1, one function per row of wire_table.py; the relay is honest.

A hostile site has its own keys: its messages are signed, and its disk and code do what it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from lying_relay import Stage
from relay_attacks import ALL, OTHER, Victims, about, dies_before, fields, lose

from fedhpc.app.federation import Federation
from fedhpc.secure import transcript_chain
from fedhpc.secure.attempt import SiteAttempt
from fedhpc.secure.messages import Survivors, read_survivors
from fedhpc.secure.ring import lanes_of
from fedhpc.secure.transcript import canon, parse_canon, sign_message
from fedhpc.sums.blocks import BlockEngine
from fedhpc.sums.over_relay.masked_sum import RelayedSums


def signs_other(stage: Stage, u: int, kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Site `u` signs a changed body of `kind`, and takes it for its own from then on."""
    honest = SiteAttempt._sign_once

    def sign(machine: SiteAttempt, name: str, t: bytes, body: dict[str, Any]) -> bytes:
        if (machine._me, name) == (u, kind):
            body = parse_canon(canon(body))
            change(body)
        return honest(machine, name, t, body)

    stage.patches.enter_context(mock.patch.object(SiteAttempt, "_sign_once", sign))


def bad_key(stage: Stage, **keys: str) -> Victims:
    signs_other(stage, 3, "M1", lambda body: body.update(keys))
    stage.start()
    stage.relay.run(1, upto="U1")
    return (1, 2, 4)


def low_order_key(stage: Stage) -> Victims:
    return bad_key(stage, mask="00" * 32)


def low_order_sealing_key(stage: Stage) -> Victims:
    return bad_key(stage, chan="01" + "00" * 31)


def copied_key(stage: Stage) -> Victims:
    def copy(body: dict[str, Any]) -> None:
        stage.relay.wait(1, "M1", [1])
        body["mask"] = parse_canon(stage.relay.objects(1).get("M1/1") or b"")["body"]["mask"]

    signs_other(stage, 3, "M1", copy)
    stage.start()
    stage.relay.run(1, upto="U1")
    return (1, 2, 4)


def share_of_another(stage: Stage) -> Victims:
    signs_other(stage, 3, "M2", lambda body: body["sealed"].__setitem__(0, body["sealed"][1]))
    stage.start()
    stage.relay.run(1, upto="U2")
    return (1,)


def false_share(stage: Stage) -> Victims:
    signs_other(stage, 3, "M2", lambda body: body["hash_a"].__setitem__(0, OTHER))
    stage.start()
    stage.relay.run(1, upto="U2")
    return (1,)


def false_secret(stage: Stage) -> Victims:
    signs_other(stage, 3, "M2", lambda body: body.update(commit=OTHER))
    stage.start()
    stage.relay.run(1)
    return (1, 2, 4)


def answers_with_noise(stage: Stage, *sites: int) -> None:
    honest = SiteAttempt._own_share

    def own_share(machine: SiteAttempt, w: int) -> bytes:
        return bytes([w]) * 32 if machine._me in sites else honest(machine, w)

    stage.patches.enter_context(mock.patch.object(SiteAttempt, "_own_share", own_share))


def noise_for_shares(stage: Stage) -> Victims:
    """Sites 3 and 4 answer with noise, more than t = 1: the sum stays shut."""
    answers_with_noise(stage, 3, 4)
    stage.start()
    stage.relay.run(1)
    return (1, 2)


def one_tag(stage: Stage) -> Victims:
    signs_other(stage, 3, "M3", lambda body: body.update(tag="01" * 24))
    stage.start()
    stage.relay.run(1)
    return (1, 2, 4)


def other_vector(stage: Stage) -> Victims:
    """Site 3 uploads another vector than its M3 names."""

    def spoil(fed: Federation) -> None:
        assert isinstance(fed.session.sums, RelayedSums)
        client = fed.session.sums._client
        put = client.put

        def other(name: Any, data: Any) -> None:
            put(name, bytes([data[0] ^ 1]) + bytes(data[1:]) if name.kind == "M3v" else data)

        client.put = other  # type: ignore[method-assign, assignment]

    stage.start(spoil={3: spoil})
    stage.relay.run(1)
    return (1, 2, 4)


def beyond_the_ring(stage: Stage) -> Victims:
    """Site 3 leaves out its own check of the bound and masks a number that carries the sum beyond it."""
    hide = BlockEngine.hide

    def wild(part: BlockEngine, low: int, high: int) -> Any:
        if part.vector.buffer[:8].view("<i8")[0] == 10**3:
            for piece in part.vector.layout.pieces(low, high):
                lanes_of(part.vector.buffer, piece.start, piece.stop, 64)[:] = np.uint64(2**63 - 1 - 10110)
        return hide(part, low, high)

    stage.patches.enter_context(mock.patch.object(BlockEngine, "hide", wild))
    stage.start()
    stage.relay.run(1)
    return (1, 2, 4)


def own_number_too_large(stage: Stage) -> Victims:
    stage.start(values={2: 2**62})
    stage.relay.wait(0, "READY", [1, 3, 4])
    return (2,)


def own_number(stage: Stage, value: float) -> Victims:
    stage.start(kind=np.float64, values=dict.fromkeys(ALL, 1.0) | {2: value}, bound=8.0)
    stage.relay.wait(0, "READY", [1, 3, 4])
    return (2,)


def own_number_is_none(stage: Stage) -> Victims:
    return own_number(stage, np.nan)


def own_number_infinite(stage: Stage) -> Victims:
    return own_number(stage, -np.inf)


def own_number_beyond(stage: Stage) -> Victims:
    return own_number(stage, 8.01)


def changed_vector(stage: Stage) -> Victims:
    """Site 2 ends when its vector was masked, and starts again with other numbers for the same round."""
    stage.start(2, spoil={2: dies_before("M3")})
    stage.start(1, 3, 4)
    stage.relay.run(1, upto="U2")
    stage.sites[2].end()
    stage.relay.give_up(1)
    stage.relay.propose(2)  # before it starts: it tries the newest attempt
    stage.start(2, values={2: 101})
    return (2,)


def second_signature(stage: Stage) -> Victims:
    """Site 2 signs {1,2,3} for sites 1 and 3 and {2,3,4} for site 4: the first opens, the second lacks site 3."""
    stage.start()
    relay = stage.relay
    relay.run(1, upto="U2")
    relay.wait(1, "M3", ALL)
    other = fields(u3=[2, 3, 4])
    held = relay.objects(1).get("M3/4") or b""
    relay.lie(about("1/M4r", other, [4]))
    lose(stage, 1, 4)

    def forged(truth: bytes) -> bytes:
        return signed_survivors(stage, 2, read_survivors(other(relay.objects(1).get("M4r") or b""), 4))

    relay.lie(about("1/M4/2", forged, [4]))
    relay.masked(1, [1, 2, 3])
    relay.objects(1).put("M3/4", held)
    relay.wait(1, "M6", [1, 2, 3])
    return (4,)


def signed_survivors(stage: Stage, u: int, survivors: Survivors) -> bytes:
    """M4 of site `u` over a set and sum of the relay's choice, with the site's own key."""
    machine = stage.relay.machine(1)
    bodies = (parse_canon(stage.relay.objects(1).get(f"M3/{v}") or b"")["body"] for v in survivors.u3)
    m3s = {v: canon(body) for v, body in zip(survivors.u3, bodies, strict=True)}
    t3 = transcript_chain.t3(machine._hash(2), m3s, survivors.sum_)
    return sign_message(stage.identity(u), "M4", u, t3, {})
