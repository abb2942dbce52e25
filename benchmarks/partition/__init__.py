"""The ReFrame suite: measurements over the nodes of a partition, and on a laptop."""
