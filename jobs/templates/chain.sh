where=("$site" --federation "$federation" --out "$run")
successor=0
barred=0
# Links of a chain: the next one waits in the queue until this one has ended, however it ends.
submit_successors() {
  "$python" -m fedhpc submit "${where[@]}" --profile @@profile@@@@container@@ --successor "$name" --links "$1"
  case $? in
    0) successor=1 ;;
    77) barred=1 ;; # the chain is cancelled, or as long as allowed; after other codes this job comes back itself
  esac
  ((successor)) || say "no successor was submitted"
}
# If the site file itself is wrong, this chain's jobs are found in the queue by their names.
drop_successors() {
  local job other
  "$python" -m fedhpc jobs cancel "${where[@]}" --after "$name" && return
  while read -r job other; do
    [[ $other != "${name%-*}"-* || $job == "$SLURM_JOB_ID" ]] || scancel "$job" || say "job $job may be left"
  done < <(squeue --noheader --user="$(id -un)" --format='%i %j')
}
requeue() {
  if scontrol requeue "$SLURM_JOB_ID"; then
    say "requeued"
    code=0
  else
    say "scontrol could not requeue job $SLURM_JOB_ID: submit it again"
  fi
}
hand_over() {
  ((successor)) || submit_successors 1
  if ((successor)); then
    say "the next job goes on"
    code=0
  elif ((barred == 0)); then
    requeue
  fi
}
# The job itself comes back, after a pause, and what waits for its end goes on waiting.
requeue_later() {
  say "other sites are late: back in $1 s"
  trap '' TERM
  echo "$SLURM_JOB_ID" >> "$jobs/$name.pauses"
  requeue
  scontrol update "JobId=$SLURM_JOB_ID" "StartTime=now+$1" || say "the job comes back at once"
}
# After an exchange: other sites are late, or this site has to train first.
come_back_or_hand_over() {
  if [[ $next == train ]]; then
    hand_over
  else
    requeue_later "$1"
  fi
}
