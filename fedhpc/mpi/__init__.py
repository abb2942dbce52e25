"""The only room that knows MPI: start-up and split (world.py), the one checked door to reductions (collectives.py)."""
