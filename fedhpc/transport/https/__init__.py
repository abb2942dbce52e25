"""A site's connections to the relay."""
