"""Whether an update may still be summed after its site was away."""

from __future__ import annotations

from federation_fakes import agreement_of, party_of
from secure_fakes import key_of

from fedhpc.secure import labels
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.transcript import input_hash
from fedhpc.sums.over_relay.recovery import RelayRecovery


def test_an_update_that_is_in_a_round_already_is_not_free() -> None:
    """The round may have been opened with it, and one update counts once."""
    party = party_of(agreement_of(4), 1)
    assert party.journal is not None
    recovery, base = RelayRecovery(party, None), key_of("base")
    assert recovery.is_free(base)
    train = input_hash(labels.PURPOSE_TRAIN, base)
    party.journal.admit(LedgerEntry(4, labels.PURPOSE_TRAIN, train, key_of("mark"), ()))
    assert not recovery.is_free(base)
    assert recovery.is_free(key_of("another base"))
