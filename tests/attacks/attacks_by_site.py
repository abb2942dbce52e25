"""What a hostile site does to the others in round 1; the relay is honest, unless the attack says that it helps.

A hostile site has its own keys: its messages are signed, and its disk and code do what it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from attack_stage import ALL, Stage, Victims
from attacks_by_relay import Play, about, fields, flipped

from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.secure import transcript_chain
from fedhpc.secure.attempt import SiteAttempt
from fedhpc.secure.messages import Survivors, read_survivors
from fedhpc.secure.ring import lanes_of
from fedhpc.secure.transcript import canon, parse_canon, sign_message
from fedhpc.sums.blocks import BlockEngine

OTHERS = (1, 2, 4)


def signs_other(
    kind: str, change: Callable[[dict[str, Any]], None], victims: Victims = OTHERS, upto: str = "M4r"
) -> Play:
    """Site 3 signs a changed body of `kind`, and takes it for its own from then on."""
    honest = SiteAttempt._sign_once

    def sign(machine: SiteAttempt, name: str, t: bytes, body: dict[str, Any]) -> bytes:
        if (machine._me, name) == (3, kind):
            body = parse_canon(canon(body))
            change(body)
        return honest(machine, name, t, body)

    def play(stage: Stage) -> Victims:
        stage.patches.enter_context(mock.patch.object(SiteAttempt, "_sign_once", sign))
        stage.start()
        stage.run(1, upto=upto)
        return victims

    return play


def bad_key(**keys: str) -> Play:
    return signs_other("M1", lambda body: body.update(keys), upto="U1")


def dealt(change: Callable[[dict[str, Any]], None]) -> Play:
    """Site 3 deals shares that site 1 finds to be false."""
    return signs_other("M2", change, (1,), "U2")


def copied_key(stage: Stage) -> Victims:
    def copy(body: dict[str, Any]) -> None:
        stage.wait(1, "M1", [1])
        body["mask"] = parse_canon(stage.objects(1).get("M1/1") or b"")["body"]["mask"]

    return signs_other("M1", copy, upto="U1")(stage)


def answers(false: Callable[[SiteAttempt, int], bytes], *sites: int, victims: Victims = OTHERS) -> Play:
    """`sites` answer with false shares of each site; with more than t = 1 of them the sum stays shut."""
    honest = SiteAttempt._own_share

    def own_share(machine: SiteAttempt, w: int) -> bytes:
        return false(machine, w) if machine._me in sites else honest(machine, w)

    def play(stage: Stage) -> Victims:
        stage.patches.enter_context(mock.patch.object(SiteAttempt, "_own_share", own_share))
        stage.start(answers_last=4)  # so that the false answers are looked at
        stage.run(1)
        return victims

    return play


def noise(machine: SiteAttempt, w: int) -> bytes:
    return bytes([w]) * 32


def of_another(machine: SiteAttempt, w: int) -> bytes:
    return machine._dealt[w % 4 + 1].b


def short(machine: SiteAttempt, w: int) -> bytes:
    return bytes(31)


def silent(stage: Stage) -> Victims:
    """Site 3 ends before it answers."""
    stage.start(3, dies={3: "M5"})
    stage.start(1, 2, 4)
    stage.run(1)
    return OTHERS


def other_vector(stage: Stage) -> Victims:
    """Site 3 uploads another vector than its M3 names, and the relay, which would leave it out, helps it."""
    stage.patches.enter_context(mock.patch.object(RoundMachine, "whole", RoundMachine.arrived))
    stage.start(uploads={3: flipped(0, 0)})
    stage.run(1)
    return OTHERS


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
    stage.run(1)
    return OTHERS


def own_number(value: float, **start: Any) -> Play:
    """Site 2 is honest, and has a number that cannot be summed."""

    def play(stage: Stage) -> Victims:
        stage.start(**{"kind": np.float64, "values": dict.fromkeys(ALL, 1.0) | {2: value}, "bound": 8.0} | start)
        stage.wait(0, "READY", [1, 3, 4])
        return (2,)

    return play


def changed_vector(stage: Stage) -> Victims:
    """Site 2 ends when its vector was masked, and starts again with other numbers for the same round."""
    stage.start(2, dies={2: "M3"})
    stage.start(1, 3, 4)
    stage.run(1, upto="U2")
    stage.end(2)
    stage.give_up(1)
    stage.propose(2)  # before it starts: it tries the newest attempt
    stage.start(2, values={2: 101})
    return (2,)


def changed_vector_to_mask(stage: Stage) -> Victims:
    """The same, and the others go on with it until it has to mask."""
    changed_vector(stage)
    stage.run(2, upto="U2")
    return (2,)


def second_signature(stage: Stage) -> Victims:
    """The relay helps: site 2 signs {1,2,3} for sites 1 and 3 and {2,3,4} for site 4, and the second lacks site 3."""
    stage.start()
    stage.run(1, upto="U2")
    for kind in ("M3", "M3v"):
        stage.wait(1, kind, ALL)
    other = fields(u3=[2, 3, 4])
    held = stage.objects(1).get("M3/4") or b""
    stage.lie(about("1/M4r", other, [4]))
    stage.forget(1, "M3/4")

    def forged(truth: bytes) -> bytes:
        m4r = other(stage.objects(1).get("M4r") or b"") or b""
        return signed_survivors(stage, 2, read_survivors(m4r, 4))

    stage.lie(about("1/M4/2", forged, [4]))
    stage.masked(1, [1, 2, 3])
    stage.objects(1).put("M3/4", held)
    stage.wait(1, "M6", [1, 2, 3])
    return (4,)


def signed_survivors(stage: Stage, u: int, survivors: Survivors) -> bytes:
    """M4 of site `u` over a set and sum of the relay's choice, with the site's own key."""
    machine = stage.machine(1)
    bodies = (parse_canon(stage.objects(1).get(f"M3/{v}") or b"")["body"] for v in survivors.u3)
    m3s = {v: canon(body) for v, body in zip(survivors.u3, bodies, strict=True)}
    t3 = transcript_chain.t3(machine._hash(2), m3s, survivors.sum_)
    return sign_message(stage.identity(u), "M4", u, t3, {})
