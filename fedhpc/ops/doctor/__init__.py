"""`fedhpc doctor`: looks for what would end a job, before the queue does. Each check is a function of a Subject."""
