#!/bin/bash
@@header@@
# shellcheck disable=SC2317  # what traps run
# Written by fedhpc @@version@@: measurements on the nodes of this job. Their lines and logs stay beside this script.

name=@@name@@
jobs=@@jobs@@
@@outside@@

@@life@@
say "@@version@@, $name, job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, restart ${SLURM_RESTART_COUNT:-0}, until ${end:-?}"

@@chain@@

@@guard@@

@@container@@
@@begin@@
forward=TERM
measured=$jobs/$name.bench-${SLURM_RESTART_COUNT:-0}
launch @@launch@@
say "the measurements ended with exit code $code; $measured*"
exit "$code"
