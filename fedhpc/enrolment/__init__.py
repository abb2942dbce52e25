"""Sites that never met get keys, certificates, a roster and a signed configuration."""
