# HOME is a folder of the run, since the user's stays outside; the ledger's home is the one outside. Neither --cleanenv
# nor --contain: the variables of Slurm and PMI must come in, and the ranks of a node share /dev/shm and /tmp. Those of
# the host's own Python and MPI stay outside; the runtime itself keeps PATH and LD_LIBRARY_PATH out.
home=$jobs/own-home
case ${XDG_DATA_HOME:-} in
  /*) ;;
  *) export XDG_DATA_HOME=${HOME:-~}/.local/share ;;
esac
@@data@@
if ! (umask 077 && mkdir -p "$home"@@made@@); then
  say "a folder that this job writes in cannot be made: the job is not submitted again"
  say "XDG_DATA_HOME in [slurm] setup, or [ledger] path in the site file, puts the ledger elsewhere"
  drop_successors
  exit 74
fi
# Each rank may be in a user namespace of its own, where Open MPI 4 hangs in its first large message.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
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
