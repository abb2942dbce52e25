cancelled=0
told=0 # 1: the walltime is near; 2: by TERM
step=
interrupted=0
forward=USR2
end=

say() { printf 'fedhpc: %s\n' "$*"; }
now() { printf '%(%s)T' -1; }

# USR1: the walltime is near. The launcher hands SIGUSR2 on; ranks stop at their next step with a checkpoint.
stop_ranks() {
  interrupted=1
  [[ -z $step ]] || kill -s "$forward" "$step" 2>/dev/null
}
on_usr1() {
  ((told)) || told=1
  say "the walltime is near: the ranks are told to stop"
  stop_ranks
}
# TERM before the walltime is scancel or preemption, after which this job does not requeue itself.
on_term() {
  told=2
  if [[ -z $end ]] || (($(now) < end - 2)); then
    cancelled=1
    say "cancelled: the ranks are told to stop"
  fi
  stop_ranks
}
trap on_usr1 USR1
trap on_term TERM

@@setup@@
set -uo pipefail
@@environment@@
# Slurm's commands ask the cluster that this job runs on, whatever a module has set.
unset SLURM_CLUSTERS SBATCH_CLUSTERS
export FEDHPC_JOB_CLUSTER=${SLURM_CLUSTER_NAME:-}

job_end() {
  local text
  if [[ -n ${SLURM_JOB_END_TIME:-} ]]; then
    printf '%s' "$SLURM_JOB_END_TIME"
    return
  fi
  text=$(scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null | tr ' ' '\n' | sed -n 's/^EndTime=//p')
  [[ $text == *[0-9]* ]] || text=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e 2>/dev/null)
  [[ $text != *[0-9]* ]] || date --date="$text" +%s
}
end=$(job_end)
[[ $end =~ ^[0-9]+$ ]] || end=
[[ -z $end ]] || export FEDHPC_JOB_END=$end

# bash runs a trap only between commands, so the launcher runs beside it. A `wait` that a signal interrupts is repeated.
launch() {
  local again
  code=75
  ((told || cancelled)) && return
  "$@" &
  step=$!
  ((told == 0)) || kill -s "$forward" "$step" 2>/dev/null
  while :; do
    interrupted=0
    wait "$step"
    again=$?
    ((again == 127)) || code=$again
    ((interrupted && again > 128)) || break
  done
  step=
}
