"""Looks for what would end a job, before the queue does."""
