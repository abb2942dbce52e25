"""What people are shown of a run: status, report, export; and the relay's table."""
