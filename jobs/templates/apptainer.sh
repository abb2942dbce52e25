# HOME is a folder of the run, since the user's stays outside; the ledger's home is the one outside. Neither --cleanenv
# nor --contain: the variables of Slurm and PMI must come in, and the ranks of a node share /dev/shm and /tmp. Those of
# the host's own Python and MPI stay outside; the runtime itself keeps PATH and LD_LIBRARY_PATH out.
@@own_home@@
@@exports@@
# What is bound later lies over what was bound before. What is missing is left to fedhpc, which says why it needs it.
binds=(
@@first@@
)
sees() { [[ ! -e $1 ]] || binds+=(--bind "$1:$2${3:-}"); }
@@needed@@
@@last@@
@@ledger@@
inside=(
  env -u PYTHONPATH -u PYTHONHOME -u PYTHONSTARTUP -u VIRTUAL_ENV -u LD_PRELOAD -u TMPDIR@@unset@@
  @@command@@ exec --home "$home" --pwd @@folder@@
  "${binds[@]}"
@@words@@
  "$image" @@python@@
)
