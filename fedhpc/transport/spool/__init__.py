"""A directory in place of a connection, for nodes without a route, and the carrier that empties it."""
