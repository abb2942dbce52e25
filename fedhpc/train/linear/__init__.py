"""The task that is linear in its features, trained with NumPy alone: no rank imports torch."""
