"""One site's local training: backends, loop, tasks, checkpoints."""
