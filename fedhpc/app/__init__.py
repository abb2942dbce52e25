"""A process of a federation: joining, its life in a job, its programs, its log."""
