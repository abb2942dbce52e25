"""The untrusted meeting point: it stores what sites sign, adds what they masked, and proposes who takes part.

rounds/machine.py is one attempt at the relay, without I/O of its own, over the interface of attempt_objects.py;
summing.py adds. federation_rounds.py decides what happens next in a federation's rounds, round_threads.py runs each in
a thread, gate.py says what sites may write: wire/kinds.py has a row for each thing. http/ moves objects over HTTPS,
store/ keeps them, status/ shows the operator where things stand. Nothing here holds a key of the sums: the sites check
what the relay says, or bind it into their keys (docs/protocol.md).
"""
