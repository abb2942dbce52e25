#!/usr/bin/env bash
# spython reads Apptainer definition files and writes them again (`spython recipe --parser singularity --writer
# singularity`), which one would take for a check of a definition, or for a way to read one: what comes out should mean
# what went in, or the command should fail. On a definition of two stages with arguments, as Apptainer has taken them
# since 1.2, it ends with exit status 0, and: the section %arguments is gone and the names in `{{ }}` have become small
# letters, so the build would stop at an unknown argument; %labels and %files come out as single letters with blanks
# between them; %startscript is replaced by a copy of %runscript. Who wants to lint definitions needs another reader.
#
# Versions: spython 0.3.14. Source: spython/main/parse/parsers/singularity.py and writers/singularity.py; Apptainer's
# user documentation, "Definition Files".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet spython==0.3.14
cat >"$folder/a.def" <<'DEFINITION'
Bootstrap: docker
From: {{ BASE }}
Stage: build

%arguments
    BASE=debian

%post
    echo built > /built

Bootstrap: docker
From: {{ BASE }}
Stage: image

%arguments
    BASE=debian

%files from build
    /built /built

%labels
    version 1

%startscript
    exec sleep 60

%runscript
    exec cat /built
DEFINITION
status=0
"$folder/venv/bin/spython" recipe --parser singularity --writer singularity "$folder/a.def" >"$folder/out.def" || status=$?
cat "$folder/out.def"
echo
"$folder/venv/bin/pip" freeze | grep spython
seen=''
for line in '^%arguments' '^From: {{ BASE }}' '^ */built /built' '^ *version 1' 'sleep 60' 'cat /built'; do
  if grep -q -- "$line" "$folder/out.def"; then seen="$seen kept"; else seen="$seen lost"; fi
done
echo "arguments, their use, files, labels, startscript, runscript: expected all kept, or a failure"
echo "seen:$seen, exit status $status"
if [ "$seen" != " lost lost lost lost lost kept" ] || [ "$status" != 0 ]; then
  echo "this has changed" >&2
  exit 1
fi
