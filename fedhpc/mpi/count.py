"""`python -m mpi4py -m fedhpc.mpi.count` under a launcher: every rank prints how many ranks see each other.

A world that is not the one the launcher promised ends with a ConfigError's words.
"""

from __future__ import annotations

from fedhpc.mpi.world import start

if __name__ == "__main__":
    print(start().group.size)
