"""Prints one line per rank: rank, size, the sum of all ranks plus one, the node, and the MPI library."""

import socket

from mpi4py import MPI

world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
library = MPI.Get_library_version().split(",")[0]
print(world.rank, world.size, total, socket.gethostname(), library, flush=True)
