"""The untrusted meeting point of sites that share no MPI job: it stores and forwards, and is believed in nothing."""
