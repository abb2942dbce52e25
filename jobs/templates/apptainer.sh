# HOME is a folder of the run, since the user's stays outside; the ledger's home is the one outside. Neither --cleanenv
# nor --contain: the variables of Slurm and PMI must come in, and the ranks of a node share /dev/shm and /tmp. Those of
# the host's own Python stay outside; the runtime itself keeps PATH and LD_LIBRARY_PATH out.
home=$jobs/own-home
case ${XDG_DATA_HOME:-} in
  /*) ;;
  *) export XDG_DATA_HOME=${HOME:-~}/.local/share ;;
esac
(umask 077 && mkdir -p "$home" "$XDG_DATA_HOME/fedhpc"@@made@@)
# Each rank may be in a user namespace of its own, where Open MPI 4 hangs in its first large message.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
@@exports@@
inside=(
  env -u PYTHONPATH -u PYTHONHOME -u PYTHONSTARTUP -u VIRTUAL_ENV -u LD_PRELOAD -u TMPDIR
  @@command@@ exec --home "$home" --pwd @@folder@@
  --bind "$XDG_DATA_HOME/fedhpc"
@@words@@
  "$image" @@python@@
)
