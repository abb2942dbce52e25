"""How a masked sum is carried out: inside one MPI job, or over a relay."""
