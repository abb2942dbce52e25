drop_successors() { :; }
requeue() {
  if scontrol requeue "$SLURM_JOB_ID"; then
    say "requeued"
    code=0
  else
    say "scontrol could not requeue job $SLURM_JOB_ID: submit it again"
  fi
}
