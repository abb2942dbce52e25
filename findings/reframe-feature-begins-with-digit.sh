#!/usr/bin/env bash
# ReFrame 4.10.4 refuses a partition one of whose `features` begins with a digit, such as `1_node`, and with it all of
# the configuration file; 4.10.0 takes it. One would expect a patch release to read what the one before read. The site
# configurations of EESSI's test suite list the sizes of jobs as features (`1_node`, `16_nodes`), so none of them loads
# with the newer release. Until one of the two changes, a suite that runs under them must ask for reframe-hpc==4.10.0
# exactly. The older release never meant to take it: its pattern was not anchored, and matched anywhere in the name.
#
# Versions: reframe-hpc 4.10.0 and 4.10.4. Source: reframe/schemas/config.json, the pattern of alphanum_ext_string,
# anchored by pull request 3685 of reframe-hpc/reframe; issue 3723 there asks for digits, and was open in September 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/config.py" <<'PYTHON'
import os

partition = {
    "name": "p",
    "scheduler": "local",
    "launcher": "local",
    "environs": ["e"],
    "features": [os.environ["FEATURE"]],
}
site_configuration = {
    "systems": [{"name": "s", "hostnames": [".*"], "partitions": [partition]}],
    "environments": [{"name": "e"}],
}
PYTHON
# Whether a version takes a feature of this name.
takes() {
  if FEATURE=$2 "$folder/$1/bin/reframe" --nocolor --prefix "$folder/out" -C "$folder/config.py" --show-config \
    >"$folder/screen" 2>&1; then
    echo yes
  else
    echo no
  fi
}
for version in 4.10.0 4.10.4; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "reframe-hpc==$version"
done
older=$(takes 4.10.0 1_node)
newer=$(takes 4.10.4 1_node)
said=$(tr '\n' ' ' <"$folder/screen" | cut -c1-400)
letter=$(takes 4.10.4 node_1)
echo "ReFrame 4.10.0 takes the feature 1_node: expected yes, seen $older"
echo "ReFrame 4.10.4 takes the feature 1_node: expected yes, seen $newer: $said"
echo "ReFrame 4.10.4 takes the feature node_1: expected yes, seen $letter"
[[ $older == yes && $newer == no && $letter == yes ]] || { echo "this has changed" >&2; exit 1; }
