#!/bin/bash
@@header@@
# shellcheck disable=SC2317  # what traps run
# Written by fedhpc @@version@@: @@about@@. Exit codes: docs/sites.md.

name=@@name@@
site=@@site@@
federation=@@federation@@
run=@@run@@
jobs=@@jobs@@
python=@@python@@

@@life@@
say "@@version@@, $name, job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, restart ${SLURM_RESTART_COUNT:-0}, until ${end:-?}"

@@chain@@
# Two jobs of one name: only where sbatch was believed to have failed. The first to begin does the work.
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

if ((${SLURM_RESTART_COUNT:-0} > @@max_requeues@@)); then
  say "requeued more than @@max_requeues@@ times, [slurm] max_requeues: given up"
  drop_successors
  exit 64
fi

@@preflight@@
@@begin_successor@@
export FEDHPC_EXIT_FILE=$jobs/$name.exit
rm -f "$FEDHPC_EXIT_FILE"
launch @@launch@@ \
  "$python" -m mpi4py -m fedhpc run "$federation" --site "$site" --out "$run" --stage @@stage@@
# A launcher that ends the step as soon as one rank has left may tell of the kill, and not of the ranks' own code.
# Without such a file ranks that were told to stop were killed before they could listen: nothing is lost by that.
if ((code > 128)) && [[ -s $FEDHPC_EXIT_FILE ]]; then
  read -r code < "$FEDHPC_EXIT_FILE"
elif ((code > 128 && (told || cancelled))); then
  code=75
fi
say "the ranks ended with exit code $code"

if ((code != 75)); then
  drop_successors
elif ((cancelled)); then
  say "cancelled, so not submitted again"
else
  @@again@@
fi
exit "$code"
