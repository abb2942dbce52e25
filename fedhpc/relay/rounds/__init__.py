"""What the relay does in a round: who takes part, which objects are whole, the sum."""
