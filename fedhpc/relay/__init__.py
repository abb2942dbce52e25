"""The untrusted meeting point: it stores what sites sign, adds what they masked, and proposes who takes part.

machine.py is one attempt at the relay, without I/O of its own; objects.py names what it keeps; summing.py adds.
federation_rounds.py decides what happens next in a federation's rounds, coordinator.py has a thread for each, gate.py
says what sites may write. server.py and what it imports move objects over HTTPS. Nothing here holds a key of the sums:
what the relay says is checked by the sites or bound into their keys (docs/protocol.md).
"""
