# Two jobs have one name only where sbatch was wrongly believed to have failed. The first to begin does the work.
if ! printf '%s\n' "$SLURM_JOB_ID" > "$jobs/.$name.$SLURM_JOB_ID"; then
  say "cannot write in $jobs"
  exit 74
fi
ln "$jobs/.$name.$SLURM_JOB_ID" "$jobs/$name.job" 2>/dev/null
rm -f "$jobs/.$name.$SLURM_JOB_ID"
read -r owner < "$jobs/$name.job" || exit 74
if [[ $owner != "$SLURM_JOB_ID" ]]; then
  say "job $owner already has the name $name: nothing to do"
  exit 0
fi

# A pause while other sites were late is no fault of this job, and does not count.
pauses=0
[[ ! -e $jobs/$name.pauses ]] || pauses=$(wc -l < "$jobs/$name.pauses")
if ((${SLURM_RESTART_COUNT:-0} - pauses > @@max_requeues@@)); then
  say "requeued more than @@max_requeues@@ times, [slurm] max_requeues: given up"
  drop_successors
  exit 64
fi
