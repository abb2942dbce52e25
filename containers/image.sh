#!/bin/sh
# The last stage of an image: what /opt/fedhpc, which is there already, needs of Debian; a user; folders to bind to.
set -eu
umask 022
here=$(dirname "$0")
target=/opt/fedhpc

debian=
"$target/bin/python" -c '' 2>/dev/null || debian=python3
[ "$MPI" != debian ] || debian="$debian openmpi-bin"
# shellcheck disable=SC2086 # one word for each package
sh "$here/debian.sh" $debian

# For whoever starts the image by its name, without a user; Apptainer and Charliecloud run it as the one who calls.
# By hand: useradd wants locks that builds without root do not get everywhere.
if ! grep -q '^fedhpc:' /etc/passwd; then
    echo 'fedhpc:x:10001:' >>/etc/group
    echo 'fedhpc:x:10001:10001::/tmp:/usr/sbin/nologin' >>/etc/passwd
fi
# A read-only image gets no new folders, and not every runtime makes up missing ones.
mkdir -p /data /scratch /project /work /relay

# Once and for all, whatever times the files get on their way: a read-only image keeps nothing that is compiled later.
# What cannot be compiled is a template or test data of some package; what is needed of it %test imports.
"$target/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$target/lib" >/dev/null || true

dpkg-query --show --showformat='${Package}\t${Version}\t${Architecture}\n' >"$target/share/debian-packages.tsv"
if [ -n "${APPTAINER_LABELS:-}" ]; then
    version=$("$target/bin/python" -c 'import fedhpc; print(fedhpc.__version__)')
    echo "org.opencontainers.image.version $version" >>"$APPTAINER_LABELS"
fi
rm -rf "$here"
rmdir --ignore-fail-on-non-empty "$(dirname "$here")"
