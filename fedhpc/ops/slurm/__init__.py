"""A site's jobs in its batch queue: settings, scripts, submission, chains."""
