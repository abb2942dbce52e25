"""The relay's objects on disk."""
