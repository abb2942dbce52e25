"""A site's jobs in its batch queue."""
