"""`python -m fedhpc`, and under a launcher `python -m mpi4py -m fedhpc`."""

from fedhpc.cli import main

main()
