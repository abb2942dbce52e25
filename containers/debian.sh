#!/bin/sh
# Installs those of the named Debian packages that are missing, from the base's own mirrors or from APT_MIRROR. Where
# none is missing the network is not asked.
set -eu
umask 022

missing=
for package in "$@"; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || state=absent
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ -n "${APT_MIRROR:-}" ]; then
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    rm -f /etc/apt/sources.list.d/*
    echo "deb $APT_MIRROR $release main" >/etc/apt/sources.list
fi
export DEBIAN_FRONTEND=noninteractive
# Where who builds is no root, apt cannot become the user as which it downloads.
echo 'APT::Sandbox::User "root";' >/etc/apt/apt.conf.d/90-build
apt-get update --quiet
# shellcheck disable=SC2086 # one word for each package
apt-get install --quiet --yes --no-install-recommends $missing
rm -rf /var/lib/apt/lists/* /etc/apt/apt.conf.d/90-build
