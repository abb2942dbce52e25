"""Looks for problems that would end a job, before it waits in the queue."""
