"""What a hostile relay does to four sites in round 1. Each attack plays on a stage and gives its victims.

The rows are in attack_table.py; most are one lie there, and what takes more than that is a function here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from attack_stage import ALL, Change, Lie, Stage, Victims

from fedhpc.secure.messages import Survivors
from fedhpc.secure.suite import SHA256, suite_named
from fedhpc.secure.transcript import TREE_BLOCK_BYTES, canon, parse_canon, sign_message

Play = Callable[[Stage], Victims]
OTHER = "77" * 32

# --- lies


def about(name: str, change: Change, sites: Iterable[int] = ALL) -> Lie:
    """Show `sites` another object `name` ("attempt/NAME")."""
    victims = tuple(sites)
    return lambda site, what, truth: change(truth) if what == name and site in victims else truth


def kept_back(*prefixes: str) -> Lie:
    """Nobody sees an object whose "attempt/NAME" begins like that."""
    return lambda site, what, truth: None if what.startswith(prefixes) else truth


def fields(**changed: Any) -> Change:
    """Other fields of a canonical object."""
    return lambda truth: canon(parse_canon(truth) | changed)


def cohort(*sites: int, bases: dict[int, str] | None = None) -> Change:
    """M0 over `sites`, some of which start from another model."""

    def change(truth: bytes) -> bytes:
        proposed = dict(parse_canon(truth)["cohort"]) | (bases or {})
        return fields(cohort=[[u, proposed[u]] for u in sites])(truth) or b""

    return change


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


def swapped_boxes(truth: bytes) -> bytes:
    message = parse_canon(truth)
    message["body"]["sealed"][0], message["body"]["sealed"][1] = message["body"]["sealed"][1::-1]
    return canon(message)


def flipped(byte: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


def swapped_blocks(y: bytes) -> bytes:
    block = TREE_BLOCK_BYTES
    return y[block : 2 * block] + y[:block] + y[2 * block :]


TWO_BLOCKS = {"lanes": 2 * TREE_BLOCK_BYTES // 8 + 5}
NARROW = {"kind": np.float32, "values": dict.fromkeys(ALL, 1)}

# --- one lie


def told(name: str, change: Change, victims: Victims = ALL, upto: str = "M4r", **start: Any) -> Play:
    """Attempt 1 up to a step, in which the victims are shown another `name`."""

    def play(stage: Stage) -> Victims:
        stage.lie(about(f"1/{name}", change, victims))
        stage.start(**start)
        stage.run(1, upto=upto)
        return victims

    return play


def proposed(**changed: Any) -> Play:
    return told("M0", fields(**changed), (2,), "M0")


def m0_attempt(stage: Stage) -> Victims:
    """No site can know the right number, so site 2 signs another T0, and every set with it is refused."""
    proposed(attempt=99)(stage)
    stage.wait(1, "M1", ALL)
    stage.objects(1).put("U1", canon([1, 2, 3, 4]))
    return ALL


def config_signature(stage: Stage) -> Victims:
    """In place of the signature of site 3 under this configuration, one that it gave for another."""
    other = sign_message(stage.identity(3), "CONFIG", 3, bytes.fromhex(OTHER), {})
    stage.lie(about("0/CONFIG/3", instead(other)))
    stage.start()
    return ALL


def m1_of_another_site(stage: Stage) -> Victims:
    return told("M1/3", lambda truth: stage.objects(1).get("M1/2"), (1, 2, 4), "U1")(stage)


def m1_signed_by_another(field: str, key: bytes) -> Play:
    """A key of the relay in M1 of site 3, which site 1 has signed for it."""

    def play(stage: Stage) -> Victims:
        def change(truth: bytes) -> bytes:
            m1 = parse_canon(truth)
            t0 = bytes.fromhex(m1["t"])
            return sign_message(stage.identity(1), "M1", 3, t0, m1["body"] | {field: key.hex()})

        return told("M1/3", change, (1, 2, 4), "U1")(stage)

    return play


def u1_beyond_the_cohort(stage: Stage) -> Victims:
    """U1 names site 4, which was not proposed, with an M1 that the relay has from elsewhere."""
    stage.lie(about("1/U1", listed(1, 2, 3, 4)))
    stage.start()
    stage.run(1, (1, 2, 3), upto="M0")
    stage.wait(1, "M1", (1, 2, 3))
    stage.objects(1).put("M1/4", stage.objects(1).get("M1/2") or b"")
    stage.machine(1).close_keys()
    return (1, 2, 3)


def u1_for_one_site(stage: Stage) -> Victims:
    """All sets are large enough and every message is genuine; only what site 1 is shown differs."""
    told("U1", listed(1, 2, 3), (1,), "U1")(stage)
    stage.wait(1, "M2", ALL)
    stage.objects(1).put("U2", canon([1, 2, 3, 4]))
    return ALL


def u2_for_one_site(stage: Stage) -> Victims:
    """The relay then offers a set of its choice and a sum that nobody added."""
    told("U2", listed(1, 2, 3), (1,), "U2")(stage)
    stage.wait(1, "M3", ALL)
    sum_ = np.zeros(40, np.uint8)
    stage.objects(1).put("Y", sum_.tobytes())
    stage.objects(1).put("M4r", Survivors(SHA256.tree(sum_), ALL).to_bytes())
    return ALL


# --- a site that starts again


def dies(stage: Stage, kind: str, upto: str) -> None:
    """Site 1 ends before it sends `kind`; the others are there."""
    stage.start(1, dies={1: kind})
    stage.start(2, 3, 4)
    stage.run(1, upto=upto)
    assert isinstance(stage.end(1), ConnectionAbortedError)


def u2_again(stage: Stage) -> Victims:
    """Site 1 ends after its vector left and before M3; it starts again and is shown another U2."""
    dies(stage, "M3", "U2")
    stage.lie(about("1/U2", listed(1, 2, 3), [1]))
    stage.start(1)
    return (1,)


def u3_after_a_restart(stage: Stage) -> Victims:
    """Site 1 signed M4 over all sites and ended; it is shown a set without site 4, whose other share would open."""
    dies(stage, "M5", "M4r")
    stage.lie(about("1/M4r", fields(u3=[1, 2, 3]), [1]))
    stage.start(1)
    return (1,)


def attempt_replayed(stage: Stage) -> Victims:
    """Attempt 2 is attempt 1 once more: the same M0 and M1, but U2 lacks site 4."""
    stage.start()
    stage.run(1, upto="U2")
    stage.wait(1, "M3", ALL)
    stage.give_up(1)
    first, again = stage.objects(1), stage.objects(2)
    again.put("M0", first.get("M0") or b"")
    stage.objects(0).put("A2", canon({}))
    stage.wait(2, "M1", ALL)
    assert all(again.get(f"M1/{u}") == first.get(f"M1/{u}") for u in ALL), "a repeated attempt has the stored bytes"
    again.put("U1", canon([1, 2, 3, 4]))
    stage.wait(2, "M2", ALL)
    again.put("U2", canon([1, 2, 3]))
    return (1, 2, 3)


# --- sets


def survivors(*u3: int, victims: Victims = ALL) -> Play:
    return told("M4r", fields(u3=list(u3)), victims)


def u3_without_the_site(stage: Stage) -> Victims:
    """Site 4 is told that its vector came too late, though it lies there: it answers nothing, and waits."""
    survivors(1, 2, 3, victims=(4,))(stage)
    stage.wait(1, "M5", [1, 2, 3])
    stage.stop_relay()
    return (4,)


def u3_split_view(stage: Stage) -> Victims:
    stage.lie(about("1/M4r", fields(u3=[1, 2, 3]), [1, 2]), about("1/M4r", fields(u3=[2, 3, 4]), [3, 4]))
    stage.start()
    stage.run(1)
    return ALL


def without_the_last(stage: Stage, **start: Any) -> None:
    """The relay has the vector of site 4, forgets its M3, and adds the others."""
    stage.start(**start)
    stage.run(1, upto="U2")
    for kind in ("M3", "M3v"):
        stage.wait(1, kind, ALL)
    stage.forget(1, "M3/4")
    stage.masked(1, [1, 2, 3])


def fewer_than_everyone(stage: Stage) -> Victims:
    without_the_last(stage, everyone=True)
    return (1, 2, 3)


def late_vector(stage: Stage, total: float = 1110, **vectors: Any) -> Victims:
    """The relay calls site 4 lost and keeps its vector: the others open its mask key, and its self mask stays."""
    without_the_last(stage, **vectors)
    stage.wait(1, "M6", [1, 2, 3])
    for u in (1, 2, 3):
        assert stage.end(u) is None
        assert stage.got(u) == pytest.approx(total)
    assert stage.has(1, "M3v", [4])
    stage.stop_relay()
    return (4,)


def opened_over(stage: Stage, *u3: int) -> None:
    """Attempt 1 over `u3`: everybody in it binds itself, and the relay keeps the answers to itself and gives up."""
    stage.lie(kept_back("1/M5/"))
    stage.start()
    stage.run(1, u3)
    stage.wait(1, "M5", u3)
    stage.give_up(1)


def second_set(stage: Stage) -> Victims:
    opened_over(stage, 1, 2, 3, 4)
    stage.run(2, [1, 2, 3])
    return (1, 2, 3)


def larger_set(stage: Stage) -> Victims:
    opened_over(stage, 1, 2, 3)
    stage.run(2)
    return (1, 2, 3)


def three_sets(stage: Stage) -> Victims:
    """{1,2,3}, {1,2,4} and {1,3,4}: with a fourth, their sums would be solved for each site."""
    opened_over(stage, 1, 2, 3)
    stage.run(2, [1, 2, 4])
    for u in (1, 2):
        error = stage.end(u)
        assert "was opened over sites [1, 2, 3], not [1, 2, 4]" in str(error), error
        assert "2/M4" not in stage.sent(u)
    stage.give_up(2)
    stage.start(1, 2)  # each finds attempt 2 given up, and goes on with the next
    stage.run(3, [1, 3, 4])
    return (1, 3)


# --- replays, and what is kept back


def replayed(kind: str, victims: Victims = ALL) -> Play:
    """Attempt 1 runs until all have sent `kind`; in attempt 2 that of site 3 (M4, M5: of all) is shown again."""
    hidden = {"M4": ("1/M4/",), "M5": ("1/M5/", "1/M6/")}.get(kind, ())
    upto = {"M1": "U1", "M2": "U2"}.get(kind, "M4r")

    def play(stage: Stage) -> Victims:
        if hidden:
            stage.lie(kept_back(*hidden))
        stage.start()
        stage.run(1, upto="U2" if kind == "M3" else upto)
        stage.wait(1, kind, ALL)
        old = {u: stage.objects(1).get(f"{kind}/{u}") or b"" for u in ALL}
        stage.give_up(1)
        for u in ALL if hidden else (3,):
            stage.lie(about(f"2/{kind}/{u}", instead(old[u]), [v for v in ALL if v != u]))
        stage.run(2, upto=upto)
        return victims

    return play


def m4_kept_back(stage: Stage) -> Victims:
    def lie(site: int, what: str, truth: bytes) -> bytes | None:
        return None if site == 1 and what.startswith("1/M4/") and what != "1/M4/1" else truth

    stage.lie(lie)
    stage.start()
    stage.run(1)
    stage.wait(1, "M6", [2, 3, 4])
    stage.stop_relay()
    return (1,)


def m6_forged(stage: Stage) -> Victims:
    """Site 1 is shown another next state in the names of the others; it applies nothing."""
    for u in (2, 3, 4):
        stage.lie(about(f"1/M6/{u}", body(state=OTHER), [1]))
    stage.start()
    stage.run(1)
    stage.wait(1, "M6", ALL)
    stage.stop_relay()
    return (1,)


# --- the sum


def altered(change: Callable[[bytes], bytes], **start: Any) -> Play:
    """The relay alters Y before it names its hash, so all sites see one sum and sign it."""

    def play(stage: Stage) -> Victims:
        stage.start(**start)
        stage.run(1, upto="U2")
        stage.lie(about("1/Y", change))
        stage.lie(about("1/M4r", lambda m4r: fields(sum=SHA256.tree(change(stage.large(1, "Y"))).hex())(m4r)))
        stage.masked(1)
        return ALL

    return play


def other_suite(stage: Stage) -> Victims:
    """The relay names the sum as it is, by its Tree of another suite than all sites signed."""
    stage.start()
    stage.run(1, upto="U2")
    stage.lie(about("1/M4r", lambda m4r: fields(sum=suite_named("blake3").tree(stage.large(1, "Y")).hex())(m4r)))
    stage.masked(1)
    return ALL


def vector_altered(stage: Stage) -> Victims:
    """A byte of site 3's vector is another one at the relay when the vectors are added."""
    stage.start()
    stage.run(1, upto="U2")
    for kind in ("M3", "M3v"):
        stage.wait(1, kind, ALL)
    stage.overwrite(1, "M3v/3", flipped(8, 0))
    stage.masked(1)
    return ALL
