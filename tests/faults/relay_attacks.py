"""What a hostile relay does to four sites (τ = 3) in round 1, one function per row of wire_table.py.

Each function makes the attack and gives its victims; test_wire_attacks.py looks at what became of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from lying_relay import Lie, Stage

from fedhpc.secure.keys import AttemptKey
from fedhpc.secure.messages import Survivors
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, canon, parse_canon, sign_message, tree
from fedhpc.wire.object_names import ObjectName

Victims = tuple[int, ...]
Change = Callable[[bytes], bytes | None]
ALL = (1, 2, 3, 4)
OTHER = "77" * 32


def about(name: str, change: Change, sites: Iterable[int] = ALL) -> Lie:
    """Show `sites` another object `name` ("attempt/NAME")."""
    victims = tuple(sites)
    return lambda site, what, truth: change(truth) if what == name and site in victims else truth


def fields(**changed: Any) -> Change:
    """Other fields of a canonical object."""
    return lambda truth: canon(parse_canon(truth) | changed)


def body(**changed: Any) -> Change:
    """Other fields in the body of a signed message; the signature stays, for the relay has no site's key."""

    def change(truth: bytes) -> bytes:
        message = parse_canon(truth)
        return canon(message | {"body": message["body"] | changed})

    return change


def instead(data: bytes) -> Change:
    return lambda truth: data


def listed(*sites: int) -> Change:
    return instead(canon(list(sites)))


def absent(truth: bytes) -> None:
    """Kept back."""


# --- M0


def proposed(stage: Stage, **changed: Any) -> Victims:
    stage.relay.lie(about("1/M0", fields(**changed), [2]))
    stage.start()
    stage.relay.propose(1)
    return (2,)


def m0_state(stage: Stage) -> Victims:
    return proposed(stage, state=OTHER)


def m0_layout(stage: Stage) -> Victims:
    return proposed(stage, layout=OTHER, tensors=[[64, 6]])


def m0_purpose(stage: Stage) -> Victims:
    return proposed(stage, purpose="weights")


def m0_round(stage: Stage) -> Victims:
    return proposed(stage, round=2)


def m0_config(stage: Stage) -> Victims:
    return proposed(stage, config=OTHER)


def m0_too_few(stage: Stage) -> Victims:
    return proposed(stage, cohort=[[1, "00" * 32], [2, "00" * 32]])


def m0_base(stage: Stage) -> Victims:
    return proposed(stage, cohort=[[u, OTHER if u == 3 else "00" * 32] for u in ALL])


def m0_attempt(stage: Stage) -> Victims:
    """No site can know the right number, so site 2 signs another T0, and every set with it is refused."""
    stage.relay.lie(about("1/M0", fields(attempt=99), [2]))
    stage.start()
    stage.relay.propose(1)
    stage.relay.wait(1, "M1", ALL)
    stage.relay.objects(1).put("U1", canon([1, 2, 3, 4]))
    return ALL


def config_signature(stage: Stage) -> Victims:
    """In place of the signature of site 3 under this configuration, one that it gave for another."""
    other = sign_message(stage.identity(3), "CONFIG", 3, bytes.fromhex(OTHER), {})
    stage.relay.lie(about("0/CONFIG/3", instead(other)))
    stage.start()
    return ALL


# --- M1, U1


def swapped_m1(stage: Stage, change: Change) -> Victims:
    stage.relay.lie(about("1/M1/3", change, [1, 2, 4]))
    stage.start()
    stage.relay.run(1, upto="U1")
    return (1, 2, 4)


def m1_own_key(stage: Stage) -> Victims:
    return swapped_m1(stage, body(mask=AttemptKey().public.hex(), chan=AttemptKey().public.hex()))


def m1_of_another_site(stage: Stage) -> Victims:
    def change(truth: bytes) -> bytes:
        return stage.relay.objects(1).get("M1/2") or b""

    return swapped_m1(stage, change)


def m1_malformed(stage: Stage) -> Victims:
    return swapped_m1(stage, instead(b"\x80\x04\x95pickle"))


def m1_oversized(stage: Stage) -> Victims:
    return swapped_m1(stage, instead(b"1" * 70_000))


def m1_other_spelling(stage: Stage) -> Victims:
    return swapped_m1(stage, lambda truth: truth.replace(b'"from":3', b'"from": 3'))


def u1_too_few(stage: Stage) -> Victims:
    stage.relay.lie(about("1/U1", listed(1, 2), [1, 2]))
    stage.start()
    stage.relay.run(1, upto="U1")
    return (1, 2)


def u1_for_one_site(stage: Stage) -> Victims:
    """All sets are large enough and every message is genuine; only what site 1 is shown differs."""
    stage.relay.lie(about("1/U1", listed(1, 2, 3), [1]))
    stage.start()
    stage.relay.run(1, upto="U1")
    stage.relay.wait(1, "M2", ALL)
    stage.relay.objects(1).put("U2", canon([1, 2, 3, 4]))
    return ALL


# --- M2, U2


def m2_altered(stage: Stage) -> Victims:
    stage.relay.lie(about("1/M2/3", body(commit=OTHER), [1, 2, 4]))
    stage.start()
    stage.relay.run(1, upto="U2")
    return (1, 2, 4)


def m2_torn(stage: Stage) -> Victims:
    stage.relay.lie(about("1/M2/3", lambda truth: truth[:-7], [1, 2, 4]))
    stage.start()
    stage.relay.run(1, upto="U2")
    return (1, 2, 4)


def m2_swapped_boxes(stage: Stage) -> Victims:
    def change(truth: bytes) -> bytes:
        message = parse_canon(truth)
        message["body"]["sealed"][0], message["body"]["sealed"][1] = message["body"]["sealed"][1::-1]
        return canon(message)

    stage.relay.lie(about("1/M2/3", change, [1, 2]))
    stage.start()
    stage.relay.run(1, upto="U2")
    return (1, 2)


def u2_too_few(stage: Stage) -> Victims:
    stage.relay.lie(about("1/U2", listed(1, 2), [1, 2]))
    stage.start()
    stage.relay.run(1, upto="U2")
    return (1, 2)


def u2_for_one_site(stage: Stage) -> Victims:
    stage.relay.lie(about("1/U2", listed(1, 2, 3), [1]))
    stage.start()
    stage.relay.run(1, upto="U2")
    stage.relay.wait(1, "M3", ALL)
    offer(stage, 1, ALL)
    return ALL


def u2_again(stage: Stage) -> Victims:
    """Site 1 ends after its vector left and before M3; it starts again and is shown another U2."""
    stage.start(1, spoil={1: dies_before("M3")})
    stage.start(2, 3, 4)
    stage.relay.run(1, upto="U2")
    assert isinstance(stage.sites[1].end(), ConnectionAbortedError)
    stage.relay.lie(about("1/U2", listed(1, 2, 3), [1]))
    stage.start(1)
    return (1,)


def attempt_replayed(stage: Stage) -> Victims:
    """Attempt 2 is attempt 1 once more: the same M0 and M1, but U2 lacks site 4."""
    stage.start()
    stage.relay.run(1, upto="U2")
    stage.relay.wait(1, "M3", ALL)
    stage.relay.give_up(1)
    first = stage.relay.objects(1)
    again = stage.relay.objects(2)
    again.put("M0", first.get("M0") or b"")
    stage.relay.objects(0).put("A2", canon({}))
    stage.relay.wait(2, "M1", ALL)
    assert all(again.get(f"M1/{u}") == first.get(f"M1/{u}") for u in ALL), "a repeated attempt has the stored bytes"
    again.put("U1", canon([1, 2, 3, 4]))
    stage.relay.wait(2, "M2", ALL)
    again.put("U2", canon([1, 2, 3]))
    return (1, 2, 3)


# --- M3, M4 of the relay


def offer(stage: Stage, attempt: int, u3: Iterable[int]) -> None:
    """M4 of the relay over a set of its choice and a sum that nobody added."""
    sum_ = np.zeros(40, np.uint8)
    stage.relay.objects(attempt).put("Y", sum_.tobytes())
    stage.relay.objects(attempt).put("M4r", Survivors(tree(sum_), tuple(u3)).to_bytes())


def m3_altered(stage: Stage) -> Victims:
    stage.relay.lie(about("1/M3/3", body(tag="01" * 24), [1, 2, 4]))
    stage.start()
    stage.relay.run(1)
    return (1, 2, 4)


def survivors_said(stage: Stage, victims: Victims, *u3: int) -> Victims:
    stage.relay.lie(about("1/M4r", fields(u3=list(u3)), victims))
    stage.start()
    stage.relay.run(1)
    return victims


def u3_doubled(stage: Stage) -> Victims:
    return survivors_said(stage, ALL, 1, 2, 2, 3)


def u3_unknown_site(stage: Stage) -> Victims:
    return survivors_said(stage, ALL, 1, 2, 3, 9)


def u3_too_few(stage: Stage) -> Victims:
    return survivors_said(stage, (1, 2), 1, 2)


def u3_without_the_site(stage: Stage) -> Victims:
    """Site 4 is told that its vector came too late, though it lies there: it answers nothing, and waits."""
    survivors_said(stage, (4,), 1, 2, 3)
    stage.relay.wait(1, "M5", [1, 2, 3])
    stage.relay.stop()
    return (4,)


def u3_split_view(stage: Stage) -> Victims:
    stage.relay.lie(about("1/M4r", fields(u3=[1, 2, 3]), [1, 2]), about("1/M4r", fields(u3=[2, 3, 4]), [3, 4]))
    stage.start()
    stage.relay.run(1)
    return ALL


def u3_after_a_restart(stage: Stage) -> Victims:
    """Site 1 signed M4 over all sites and ended; it is shown a set without site 4, whose other share would open."""
    stage.start(1, spoil={1: dies_before("M5")})
    stage.start(2, 3, 4)
    stage.relay.run(1)
    assert isinstance(stage.sites[1].end(), ConnectionAbortedError)
    stage.relay.lie(about("1/M4r", fields(u3=[1, 2, 3]), [1]))
    stage.start(1)
    return (1,)


def fewer_than_everyone(stage: Stage) -> Victims:
    stage.start(everyone=True)
    stage.relay.run(1, upto="U2")
    stage.relay.wait(1, "M3", ALL)
    lose(stage, 1, 4)
    stage.relay.masked(1, [1, 2, 3])
    return (1, 2, 3)


def late_vector(stage: Stage, total: float = 1110, **vectors: Any) -> Victims:
    """The relay calls site 4 lost and keeps its vector: the others open its mask key, and its self mask stays."""
    stage.start(**vectors)
    stage.relay.run(1, upto="U2")
    stage.relay.wait(1, "M3", ALL)
    lose(stage, 1, 4)
    stage.relay.masked(1, [1, 2, 3])
    stage.relay.wait(1, "M6", [1, 2, 3])
    for u in (1, 2, 3):
        assert stage.sites[u].end() is None
        assert stage.sites[u].got == pytest.approx(total)
    assert stage.relay.has(1, "M3v", [4])
    stage.relay.stop()
    return (4,)


def lose(stage: Stage, attempt: int, u: int) -> None:
    """Forget that the M3 of site u came; its vector stays."""
    where = (stage.relay.config, 1, attempt)
    stage.relay.store.drop(lambda name: name.attempt_name == where and name.name == f"M3/{u}")


# --- M4, M5


def m4_kept_back(stage: Stage) -> Victims:
    def keep(site: int, what: str, truth: bytes) -> bytes | None:
        return None if site == 1 and what.startswith("1/M4/") and what != "1/M4/1" else truth

    stage.relay.lie(keep)
    stage.start()
    stage.relay.run(1)
    stage.relay.wait(1, "M6", [2, 3, 4])
    stage.relay.stop()
    return (1,)


def replayed(stage: Stage, kind: str, upto: str, victims: Victims) -> Victims:
    """Attempt 1 runs until all have sent `kind`; in attempt 2 that of site 3 (M4, M5: of all) is shown again."""
    late = kind in ("M4", "M5")
    for before in ("1/M5/", "1/M6/") if kind == "M5" else ("1/M4/",) if kind == "M4" else ():
        stage.relay.lie(lambda site, what, truth, b=before: None if what.startswith(b) else truth)  # type: ignore[misc]
    stage.start()
    stage.relay.run(1, upto="U1" if kind == "M1" else "U2" if kind in ("M2", "M3") else "M4r")
    stage.relay.wait(1, kind, ALL)
    old = {u: stage.relay.objects(1).get(f"{kind}/{u}") or b"" for u in ALL}
    stage.relay.give_up(1)
    for u in ALL if late else (3,):
        others = [v for v in ALL if v != u]
        stage.relay.lie(about(f"2/{kind}/{u}", instead(old[u]), others))
    stage.relay.run(2, upto=upto)
    return victims


def m1_replayed(stage: Stage) -> Victims:
    return replayed(stage, "M1", "U1", (1, 2, 4))


def m2_replayed(stage: Stage) -> Victims:
    return replayed(stage, "M2", "U2", (1, 2, 4))


def m3_replayed(stage: Stage) -> Victims:
    return replayed(stage, "M3", "M4r", (1, 2, 4))


def m4_replayed(stage: Stage) -> Victims:
    return replayed(stage, "M4", "M4r", ALL)


def m5_replayed(stage: Stage) -> Victims:
    return replayed(stage, "M5", "M4r", ALL)


# --- sets over several attempts


def opened_over(stage: Stage, *u3: int) -> None:
    """Attempt 1 over `u3`: everybody in it binds itself, and the relay keeps the answers to itself and gives up."""
    stage.relay.lie(lambda site, what, truth: None if what.startswith("1/M5/") else truth)
    stage.start()
    stage.relay.run(1, u3)
    stage.relay.wait(1, "M5", u3)
    stage.relay.give_up(1)


def second_set(stage: Stage) -> Victims:
    opened_over(stage, 1, 2, 3, 4)
    stage.relay.run(2, [1, 2, 3])
    return (1, 2, 3)


def three_sets(stage: Stage) -> Victims:
    """{1,2,3}, {1,2,4} and {1,3,4}: with a fourth, their sums would be solved for each site."""
    opened_over(stage, 1, 2, 3)
    stage.relay.run(2, [1, 2, 4])
    for u in (1, 2):
        error = stage.sites[u].end()
        assert "was opened over sites [1, 2, 3], not [1, 2, 4]" in str(error), error
        assert "2/M4" not in stage.relay.sent(u)
    stage.relay.give_up(2)
    stage.start(1, 2)  # each finds attempt 2 given up, and goes on with the next
    stage.relay.run(3, [1, 3, 4])
    return (1, 3)


# --- the sum, M6


def sum_altered(stage: Stage, change: Callable[[bytes], bytes], lanes: int = 5, **more: Any) -> Victims:
    """The relay alters Y before it names its hash, so all sites see one sum and sign it."""
    stage.start(lanes=lanes, **more)
    stage.relay.run(1, upto="U2")
    for kind in ("M3", "M3v"):
        stage.relay.wait(1, kind, ALL)
    stage.relay.lie(about("1/Y", change))
    stage.relay.lie(about("1/M4r", lambda m: fields(sum=tree(change(stage.relay.objects(1).get("Y") or b"")).hex())(m)))
    stage.relay.masked(1)
    return ALL


def flipped(byte: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda y: y[:byte] + bytes([y[byte] ^ 1 << bit]) + y[byte + 1 :]


def y_low_bit(stage: Stage) -> Victims:
    return sum_altered(stage, flipped(0, 0))


def y_top_bit(stage: Stage) -> Victims:
    return sum_altered(stage, flipped(7, 7))


def y_top_bit_of_32(stage: Stage) -> Victims:
    return sum_altered(stage, flipped(3, 7), kind=np.float32, values=dict.fromkeys(ALL, 1), bound=8.0)


def y_swapped_blocks(stage: Stage) -> Victims:
    block = TREE_BLOCK_BYTES
    return sum_altered(stage, lambda y: y[block : 2 * block] + y[:block] + y[2 * block :], lanes=2 * block // 8 + 5)


def y_dropped_block(stage: Stage) -> Victims:
    return sum_altered(stage, lambda y: bytes(16) + y[16:])


def y_for_one_site(stage: Stage) -> Victims:
    stage.relay.lie(about("1/Y", flipped(0, 0), [2]))
    stage.start()
    stage.relay.run(1)
    return (2,)


def y_shorter(stage: Stage) -> Victims:
    stage.relay.lie(about("1/Y", lambda y: y[:-8], [2]))
    stage.start()
    stage.relay.run(1)
    return (2,)


def y_longer(stage: Stage) -> Victims:
    stage.relay.lie(about("1/Y", lambda y: y + bytes(16), [2]))
    stage.start()
    stage.relay.run(1)
    return (2,)


def vector_altered(stage: Stage) -> Victims:
    """A byte of site 3's vector is another one on the relay's disk when the vectors are added."""
    stage.start()
    stage.relay.run(1, upto="U2")
    for kind in ("M3", "M3v"):
        stage.relay.wait(1, kind, ALL)
    path = stage.relay.store.path(ObjectName(stage.relay.config, 1, 1, "M3v/3"))
    path.write_bytes(flipped(8, 0)(path.read_bytes()))
    stage.relay.masked(1)
    return ALL


def m4r_for_one_site(stage: Stage) -> Victims:
    stage.relay.lie(about("1/M4r", fields(sum=OTHER), [2]))
    stage.start()
    stage.relay.run(1)
    return (2,)


def m6_forged(stage: Stage) -> Victims:
    """Site 1 is shown another next state in the names of the others; it applies nothing."""
    for u in (2, 3, 4):
        stage.relay.lie(about(f"1/M6/{u}", body(state=OTHER), [1]))
    stage.start()
    stage.relay.run(1)
    stage.relay.wait(1, "M6", ALL)
    stage.relay.stop()
    return (1,)


def dies_before(kind: str) -> Callable[[Any], None]:
    """A site that ends just before it sends `kind`, with all that it has written by then."""

    def spoil(fed: Any) -> None:
        exchange = fed.session.sums.lead.exchange
        put = exchange.put

        def dying(round_: int, attempt: int, what: str, data: bytes, **more: Any) -> None:
            if what == kind:
                raise ConnectionAbortedError
            put(round_, attempt, what, data, **more)

        exchange.put = dying

    return spoil
