"""A site that does without a sum: what others sign, or only claim to sign, beside its ABANDON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation_fakes import Meeting
from secure_fakes import key_of

from fedhpc.federation.party import Party, SumKind, SumPlan
from fedhpc.ledger.journal import MemoryJournal
from fedhpc.secure.ledger import Mark
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import canon, sign_message
from fedhpc.sums.over_relay.access import thresholds_of
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.exchange import RelayExchange, TooLateError
from fedhpc.sums.over_relay.skip import Skip
from fedhpc.transport.listing import Entry

STATE, NEXT = key_of("state"), key_of("next")
PLAN = SumPlan(7, "measured after round 1", SumKind.STATISTIC, STATE, everyone=True, skip=True, following=NEXT)


class Lobby:
    """A relay whose lobby holds what others have sent, and says that the round is done."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def put(self, name: Any, data: bytes) -> None:
        self.objects[name.name] = data

    def listing(self, config: str, round_: int, attempt: int, after: str, wait_s: float, until: Any) -> Any:
        new = [Entry(n, SHA256.tree(d), len(d), d) for n, d in sorted(self.objects.items())[int(after or 0) :]]
        return new, str(len(self.objects))


def identity(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key_of("identity", number))


def abandoned(number: int, signer: int = 0) -> bytes:
    return sign_message(identity(signer or number), "ABANDON", number, STATE, {"state": NEXT.hex()})


def skip(tmp_path: Path, others: dict[int, bytes]) -> Any:
    """Site 2 of four signs ABANDON; `others` have signed theirs, and the relay has counted them."""
    meeting = Meeting(4, cohort={"upload_s": 1.0})
    base = meeting.session(2).party
    agreement, members = base.agreement, base.members
    party = Party(agreement, 2, base.site, members, identity(2), base.ledger_keys, MemoryJournal(), base.salt_key)
    lobby = Lobby({f"ABANDON/{u}": message for u, message in others.items()})
    lobby.objects["DONE"] = canon({"attempt": 0, "u3": []})
    exchange = RelayExchange(cast(Any, lobby), agreement.hash, 2)
    files = AttemptFiles(tmp_path / "attempts", party.journal)  # type: ignore[arg-type]
    return Skip(party, exchange, files, thresholds_of(agreement), PLAN).abandon(Mark(key_of("fingerprint")))


def test_enough_sites_stand_behind_the_next_state(tmp_path: Path) -> None:
    settled = skip(tmp_path, {1: abandoned(1), 3: abandoned(3)})
    assert (settled.state, settled.u3, len(settled.proof)) == (NEXT, (), 3)


@pytest.mark.parametrize("forged", [abandoned(4, signer=3), b"{}"])
def test_a_site_whose_signature_does_not_hold_stops_nobody(tmp_path: Path, forged: bytes) -> None:
    """The relay counts it, and takes no further ABANDON of the round; without it there are not enough.

    The round is over here as it is for a site that was away: both go on from the state that is known beforehand.
    """
    with pytest.raises(TooLateError) as over:
        skip(tmp_path, {1: abandoned(1), 4: forged})
    assert over.value.kind == "round-over"
