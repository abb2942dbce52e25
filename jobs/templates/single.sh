drop_successors() { :; }
requeue() {
  say "requeued"
  scontrol requeue "$SLURM_JOB_ID" || say "scontrol could not requeue job $SLURM_JOB_ID: submit it again"
}
