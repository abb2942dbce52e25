# HOME is a folder of the run; the ledger's home is the same as outside. All variables come in, those of Slurm and PMI
# among them, but not those of the host's own Python and libraries.
home=$jobs/own-home
case ${XDG_DATA_HOME:-} in
  /*) ;;
  *) export XDG_DATA_HOME=${HOME:-~}/.local/share ;;
esac
(umask 077 && mkdir -p "$home" "$XDG_DATA_HOME/fedhpc"@@made@@)
# Each rank is in a user namespace of its own, where Open MPI 4 hangs in its first large message.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
# ch-run wants it, and shares /tmp, below which nothing can be bound.
export USER=${USER:-$(id -un)}
ledgers=(--bind="$XDG_DATA_HOME/fedhpc")
[[ $XDG_DATA_HOME != /tmp/* ]] || ledgers=()
inside=(
  env -u PYTHONPATH -u PYTHONHOME -u PYTHONSTARTUP -u VIRTUAL_ENV -u LD_PRELOAD -u LD_LIBRARY_PATH -u TMPDIR
  @@command@@ --env-no-expand --cd=@@folder@@ --set-env="HOME=$home" --set-env=PATH=@@path@@ "${ledgers[@]}"
@@words@@
  "$image" -- @@python@@
)
