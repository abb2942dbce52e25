#!/usr/bin/env bash
# A file that a process has open with h5py's `locking=False` cannot be opened for reading a second time without that
# argument in the same process, nor the other way round: OSError, although both only read. One would expect the second
# opening to be independent, as on every other file, or at most to wait. HDF5 keeps one open file behind all handles of a
# process, and refuses a handle whose locking flags differ from the first one's; True and the default (best effort) do not
# agree either. So a library that reads without locks, as parallel file systems make it do, and a script that opens the
# same store with h5py's defaults collide. Where HDF5_USE_FILE_LOCKING is set, all of them agree, and the file opens.
#
# Versions: h5py 3.16.0 (HDF5 2.0.0 in its wheel). Source: HDF5's src/H5Fint.c, H5F_open(): flags of a shared file are
# compared; h5py documentation, "File Objects": `locking` is a property of how one file is opened.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet h5py==3.16.0
cat >"$folder/seen.py" <<'PYTHON'
import itertools
import sys

import h5py

path = sys.argv[1]
with h5py.File(path, "w") as file:
    file["x"] = [1, 2, 3]


def second_opens(first, second):
    with h5py.File(path, "r", **first):
        try:
            h5py.File(path, "r", **second).close()
        except OSError as error:
            assert "don't match" in str(error), error
            return False
    return True


ways = {"default": {}, "False": {"locking": False}, "True": {"locking": True}}
print(sum(second_opens(ways[a], ways[b]) for a, b in itertools.permutations(ways, 2)))
PYTHON
run() { env "$@" "$folder/venv/bin/python" "$folder/seen.py" "$folder/a.h5"; }
alone=$(run -u HDF5_USE_FILE_LOCKING)
told=$(run HDF5_USE_FILE_LOCKING=FALSE)
"$folder/venv/bin/python" -c 'import h5py; print("h5py", h5py.__version__, "HDF5", h5py.version.hdf5_version)'
echo "second openings that work, of 6 with another value of locking: expected 6, seen $alone"
echo "with HDF5_USE_FILE_LOCKING=FALSE: seen $told"
if [ "$alone" != 0 ] || [ "$told" != 6 ]; then
  echo "this has changed" >&2
  exit 1
fi
