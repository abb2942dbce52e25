# The ledger is elsewhere, so a data directory that takes nothing does not matter.
(umask 077 && mkdir -p "$XDG_DATA_HOME/fedhpc" && [[ -w $XDG_DATA_HOME/fedhpc ]]) 2>/dev/null ||
  export XDG_DATA_HOME=$home/.local/share
