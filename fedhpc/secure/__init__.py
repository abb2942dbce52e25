"""The vault: bytes and NumPy arrays in, bytes and NumPy arrays out; no files, no sockets, no clock.

It implements `fedhpc-secagg/1` (docs/protocol.md). An auditor reads this package alone: ring.py turns numbers into
lanes, masks.py hides them, keys.py agrees on the mask keys, transcript.py binds every key to what all sites saw,
pairwise.py is one attempt of the `mpi` exchange, ledger.py refuses what would isolate a site, thresholds.py the sizes.
"""
