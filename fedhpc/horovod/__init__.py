"""Horovod's wheel: what it is built for, how, where it is kept, and what of it is installed."""
