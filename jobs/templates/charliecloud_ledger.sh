[[ $XDG_DATA_HOME == /tmp/* ]] || binds+=(--bind="$XDG_DATA_HOME/fedhpc")
