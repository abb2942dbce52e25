"""The compiled kernel: one pass over memory that checks, fingerprints, encodes, masks and tags (README.md).

Optional: where it is not built, not supported by the CPU or not wanted, the Python path does the same, bit for bit.
"""
