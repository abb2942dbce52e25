#!/bin/sh
# Installs those of the named Debian packages that are missing, from the base's own mirrors or from APT_MIRROR, whose
# address does not stay in the image. Where none is missing the network is not asked.
set -eu
umask 022

missing=
for package in "$@"; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || state=absent
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

settings=/etc/apt/apt.conf.d/90-build list=
if [ -n "${APT_MIRROR:-}" ]; then
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    list=/etc/apt/90-build.list
    for suite in "$release" "$release-updates"; do echo "deb $APT_MIRROR $suite main"; done >"$list"
    printf 'Dir::Etc::%s;\n' "SourceList \"$list\"" 'SourceParts "-"' >"$settings"
fi
export DEBIAN_FRONTEND=noninteractive
# Where who builds is no root, apt cannot become the user as which it downloads.
echo 'APT::Sandbox::User "root";' >>"$settings"
apt-get update --quiet
# shellcheck disable=SC2086 # one word for each package
apt-get install --quiet --yes --no-install-recommends $missing
rm -rf /var/lib/apt/lists/* "$settings" ${list:+"$list"}
