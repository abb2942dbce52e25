"""Examples with real data."""
