# HOME is a folder of the run; the ledger's home is the same as outside. All variables come in, those of Slurm and PMI
# among them, but not those of the host's own Python, MPI and libraries.
@@own_home@@
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
