"""The untrusted meeting point: it stores what sites sign, adds what they masked, and proposes who takes part.

round_machine.py is one attempt at the relay, without I/O of its own; objects.py names what is stored; summing.py adds.
Nothing here holds a key: what the relay says is checked by the sites or bound into their keys (docs/protocol.md).
"""
