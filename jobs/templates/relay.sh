#!/bin/bash
@@header@@
# shellcheck disable=SC2317  # what traps run
# Written by fedhpc @@version@@: the relay. It outlives its jobs: its folder is on a disk, and sites keep trying in between.
# Its address is that of the node: [slurm] extra = ["--nodelist=NODE"] keeps it.

name=@@name@@
jobs=@@jobs@@
relay=@@relay@@
@@outside@@

@@life@@
say "@@version@@, $name, job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, restart ${SLURM_RESTART_COUNT:-0}, until ${end:-?}"

@@chain@@

@@guard@@

@@container@@
forward=TERM
launch @@inside@@ -m fedhpc relay serve "$relay"
say "the relay ended with exit code $code"
if ((told && !cancelled)); then
  requeue
fi
exit "$code"
