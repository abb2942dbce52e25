"""How a site lives in its batch queue."""
