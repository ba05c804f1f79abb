#!/bin/bash
# Builds postgresql-NN-sync-outbox for every major of this Debian, checks the packages with lintian, and leaves them in
# target/deb. DEB_REVISION=2 makes a later revision of the same version.
#
# Cargo is the machine's own (rustup's, for example), because Debian's is too old. It may download crates.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v dpkg >/dev/null || { echo 'make deb needs a Debian' >&2; exit 1; }

missing=()
for package in build-essential clang debhelper libclang-dev libicu-dev lintian pkg-config postgresql-server-dev-all; do
    [[ $(dpkg-query -W -f '${Status}' $package 2>/dev/null) == 'install ok installed' ]] || missing+=($package)
done
if ((${#missing[@]})); then
    [[ $EUID -eq 0 ]] || { echo "make deb needs these packages: ${missing[*]}" >&2; exit 1; }
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

packages=$(realpath -m "${CARGO_TARGET_DIR:-target}/deb")
version=$(sed -nE 's/^default_version = .(.*).$/\1/p' sync_outbox.control)
source=$packages/sync-outbox-$version
# What is built here stays here: the tests use the library that `make build` has left in its own place.
export CARGO_TARGET_DIR=$packages/cargo CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}

mkdir -p "$packages"
rm -rf "$source" "$packages"/*sync-outbox*.*
mkdir "$source"
tar -c --exclude=./target --exclude=./.git --exclude=__pycache__ --exclude=.hypothesis . | tar -x --no-same-owner -C "$source"
cd "$source"
tar -cJf "../sync-outbox_$version.orig.tar.xz" --exclude="${source##*/}/debian" -C .. "${source##*/}"

if [[ -n ${DEB_REVISION:-} ]]; then
    # By the same person on the same day: from another day, cargo would compile what is there once more, because the day
    # of the changelog becomes SOURCE_DATE_EPOCH.
    printf '%s\n\n%s\n\n%s\n\n' "sync-outbox ($version-$DEB_REVISION) unstable; urgency=medium" '  * Built again.' \
        "$(grep -m1 '^ -- ' debian/changelog)" | cat - debian/changelog >debian/changelog.new
    mv debian/changelog.new debian/changelog
fi
# The majors are those of this Debian.
pg_buildext updatecontrol
dpkg-buildpackage --no-sign
cd ..
rm -rf "$source"

# One tag is for uploads to Debian: the first one closes a bug there.
lintian --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs ./*.changes
ls "$packages"/*.deb
