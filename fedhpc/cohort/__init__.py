"""Who takes part in a round, and until when one waits: pure decisions, no I/O and no clock."""
