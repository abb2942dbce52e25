"""The federation: the masked sum as a user meets it, and the main loop over it (rounds/loop.py)."""
