"""The relay's public port."""
