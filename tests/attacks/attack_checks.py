"""What must be seen after an attack, on any stage: the error at the victims, and that nothing was released before."""

from __future__ import annotations

from attack_stage import ALL, Stage
from attack_table import Attack

from fedhpc.secure.transcript import parse_canon

MESSAGES = ("READY", "M1", "M2", "M3v", "M3", "M4", "M5", "M6")
TAU = 3
TOTAL = 11110  # of 10^u over all sites


def check(stage: Stage, attack: Attack) -> None:
    """Play the attack."""
    victims = attack.play(stage)
    assert victims
    for u in victims:
        error = stage.end(u)
        if not attack.error:
            assert error is None, f"site {u}: {error!r}"
            assert stage.got(u) == TOTAL
            assert attack.words in stage.faults(u)
            continue
        assert type(error).__name__ == attack.error, f"site {u}: {error!r}"
        assert any(words in str(error) for words in attack.words.split(" | ")), f"site {u}: {error!r}"
        assert stage.got(u) == 0, "no sum was given out"
        nothing_was_released(stage, attack, u)
    for u in ALL if attack.rest else ():
        assert u in victims or (stage.end(u) is None and stage.got(u) > 0), f"site {u}: {stage.end(u)!r}"
    one_set_at_most(stage)


def one_set_at_most(stage: Stage) -> None:
    """No site is bound to two sets of the round, and the relay with any t = 1 of them could open one at most."""
    opened: set[tuple[int, ...]] = set()
    for attempt in (1, 2, 3):
        answered: dict[str, list[int]] = {}
        for u in ALL:
            m5 = stage.objects(attempt).get(f"M5/{u}")
            if m5 is not None:
                answered.setdefault(parse_canon(m5)["t"], []).append(u)
        for senders in answered.values():
            sets = {cohort for u in senders for cohort in stage.sets(u)}
            assert len(sets) == 1
            opened |= sets if len(senders) >= TAU - 1 else set()
    assert len(opened) <= 1
    for u in ALL:
        assert len(stage.sets(u)) <= 1, f"site {u} bound itself to two sets of one round"


def nothing_was_released(stage: Stage, attack: Attack, u: int) -> None:
    """Site `u` sent nothing from the message on at which it had to stop, and wrote nothing that would allow it."""
    later = MESSAGES[MESSAGES.index(attack.stops) :] if attack.stops else ()
    sent = stage.sent(u)
    attempt = 0 if attack.stops == "READY" else attack.attempt
    assert not sent & {f"{attempt}/{kind}" for kind in later}, sent
    if attack.attempt == 1 and attack.stops in ("READY", "M1", "M2", "M3v"):
        assert stage.cohorts(u) == []
    if attack.attempt == 1 and attack.stops in ("M3", "M4"):
        assert stage.cohorts(u) == [()], "one vector, and no set"
