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
