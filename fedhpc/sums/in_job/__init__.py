"""Masked sums within one MPI job of all sites."""
