"""What the relay shows its operator."""
