# HOME is a folder of the run; the ledger's home is the same as outside. All variables come in, those of Slurm and PMI
# among them, but not those of the host's own Python, MPI and libraries.
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
# Each rank is in a user namespace of its own, where Open MPI 4 hangs in its first large message.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
# ch-run wants it, and shares /tmp, below which nothing can be bound.
export USER=${USER:-$(id -un)}
# What is bound later lies over what was bound before. What is missing is left to fedhpc, which says why it needs it.
binds=(
@@first@@
)
sees() { [[ ! -e $1 ]] || binds+=("--bind=$1:$2"); }
@@needed@@
@@last@@
@@ledger@@
inside=(
  env -u PYTHONPATH -u PYTHONHOME -u PYTHONSTARTUP -u VIRTUAL_ENV -u LD_PRELOAD -u LD_LIBRARY_PATH -u TMPDIR@@unset@@
  @@command@@ --env-no-expand --cd=@@folder@@ --set-env="HOME=$home" --set-env=PATH=@@path@@ "${binds[@]}"
@@words@@
  "$image" -- @@python@@
)
