"""What carries a round between the sites: `mpi` inside one job (mpi.py), nothing for a single site (alone.py)."""
