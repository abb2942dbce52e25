"""The vault: bytes and NumPy arrays in, bytes and NumPy arrays out; no files, no sockets, no clock.

It implements `fedhpc-secagg/2` (docs/protocol.md). An auditor reads this package alone: ring.py turns numbers into
lanes, masks.py hides them, keys.py agrees on the mask keys, transcript.py binds every key to what all sites saw,
pairwise.py is one attempt of the `mpi` exchange, ledger.py refuses what would isolate a site, thresholds.py the sizes.

Over a relay: attempt.py is one site's side of one attempt, step by step, on attempt.py; messages.py reads
and writes what is sent, dealing.py and shares.py share the secrets, sealing.py seals them, tag.py shows an altered sum,
opening.py turns answers into what hides the sum; attempt_file.py is what survives a restart, results.py ends a round,
catchup.py brings back a site that was away, epochs.py orders configurations.
"""
