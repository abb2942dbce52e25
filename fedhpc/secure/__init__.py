"""The vault: bytes and NumPy arrays in, bytes and NumPy arrays out; no files, no sockets, no clock.

It implements `fedhpc-secagg/3` (docs/protocol.md), after Bonawitz et al. (2017), with the sparse graph of masks of Bell
et al. (2020) and the shares of Shamir (1979). An auditor reads this package alone: ring.py turns numbers into lanes,
masks.py hides them, keys.py agrees on the mask keys, transcript.py writes, hashes and signs messages,
transcript_chain.py binds every key to what all sites saw, pairwise.py is one attempt of the `mpi` exchange, ledger.py
refuses what would isolate a site, thresholds.py the sizes.

Over a relay: attempt.py is one site's side of one attempt, step by step; message_kinds.py is the table of messages,
messages.py reads and writes their bodies, dealing.py and shares.py share the secrets, sealing.py seals them, tag.py
shows an altered sum, opening.py turns answers into what hides the sum; attempt_file.py is what survives a restart,
results.py ends a round, catch_up_messages.py brings back a site that was away, epochs.py orders configurations.
"""
