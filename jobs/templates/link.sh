#!/bin/bash
@@header@@
# shellcheck disable=SC2317  # what traps run
# Written by fedhpc @@version@@: @@about@@. Exit codes: docs/sites.md.

name=@@name@@
jobs=@@jobs@@
site=@@site@@
federation=@@federation@@
run=@@run@@
@@outside@@
@@shape@@

@@life@@
say "@@version@@, $name, job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, restart ${SLURM_RESTART_COUNT:-0}, until ${end:-?}"

@@chain@@

@@guard@@

@@container@@
@@preflight@@
@@begin@@

export FEDHPC_EXIT_FILE=$jobs/$name.exit
rm -f "$FEDHPC_EXIT_FILE"
launch @@launch@@
# A launcher that ends the step as soon as one rank has left reports the kill, and not that rank's own exit code; so
# does one that got TERM itself (mpirun: 1). Without such a file, ranks that were told to stop were killed before they
# could leave: the run goes on from its newest checkpoint.
left='' next=''
[[ ! -s $FEDHPC_EXIT_FILE ]] || read -r left next < "$FEDHPC_EXIT_FILE"
if ((code > 128 || (code && told == 2))) && [[ -n $left ]]; then
  code=$left
elif ((code > 128 && told || code && told == 2)); then
  code=75
fi
say "the ranks ended with exit code $code${next:+, next: $next}"

if ((code != 75)); then
  drop_successors
elif ((cancelled)); then
  say "cancelled, so not submitted again"
else
  @@again@@
fi
exit "$code"
