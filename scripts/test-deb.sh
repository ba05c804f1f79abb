#!/bin/bash
# Tests what people install: the packages, each in a clean Debian of its release, and the zip of make dist. As root, on a
# Debian: scripts/test-deb.sh [MAJOR...], by default 15 (Debian 12) and 17 (Debian 13).
#
# The packages of this machine's release are built on it, the others where scripts/in-root.sh has their major. A release
# that cannot be had is skipped by name.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${ROOTS:=/var/cache/sync_outbox/roots}"
[[ $EUID -eq 0 ]] || { echo 'make test-deb needs root' >&2; exit 1; }
majors=("$@")
[[ $# -gt 0 ]] || majors=(15 17)

scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/sync_outbox-packages.XXXXXX")
# The mounts are those of the processes that made them and are gone by then. --one-file-system: even if not.
trap 'rm -rf --one-file-system "$scratch"' EXIT

# The major of this machine's release, which needs no root to build.
here() {
    case $(. /etc/os-release && echo "$ID-${VERSION_CODENAME:-}") in
        debian-bookworm) echo 15 ;;
        debian-trixie) echo 17 ;;
    esac
}

# Packages for major $1, of Debian revision $2 if it is not empty, copied to $3.
build() {
    local built
    if [[ $1 == "$(here)" ]]; then
        DEB_REVISION=$2 make deb
        built=${CARGO_TARGET_DIR:-target}/deb
    else
        ROOTS=$ROOTS scripts/in-root.sh "$1" make deb DEB_REVISION="$2"
        built=$ROOTS/$1/target/deb
    fi
    mkdir -p "$3"
    cp "$built"/*.deb "$3/"
}

# A clean root is made once and kept; what is installed goes into a copy.
package() {
    local major=$1
    # Exit status 75, of this and of `build`, says that this major is not to be had.
    ROOTS=$ROOTS/clean scripts/in-root.sh "$major" true
    cp -a "$ROOTS/clean/$major" "$scratch/$major"
    build "$major" '' "$scratch/$major/packages/first"
    build "$major" 2 "$scratch/$major/packages/second"
    ROOTS=$scratch scripts/in-root.sh "$major" scripts/test-deb-in-root.sh "$major"
}

# What PGXN's client types, but for the copying into the system.
archive() {
    local directory cargo
    [[ -e .git ]] || { echo 'this is no clone with git' >&2; return 75; }
    make dist
    /usr/bin/python3 -m zipfile --extract "${CARGO_TARGET_DIR:-target}"/sync_outbox-*.zip "$scratch/zip"
    directory=$(echo "$scratch"/zip/sync_outbox-*)
    # Where `make deb` builds: what does not depend on the path is there.
    cargo=$(realpath "${CARGO_TARGET_DIR:-target}")/deb/cargo
    CARGO_INCREMENTAL=0 make -C "$directory" all install-files CARGO_TARGET_DIR="$cargo" \
        PG_CONFIG="$(pg_config_here)" DESTDIR="$scratch/zip/root"
    for file in sync_outbox.so sync_outbox.control 'sync_outbox--*.sql'; do
        [[ -n $(find "$scratch/zip/root" -name "$file") ]] || { echo "the zip installed no $file" >&2; return 1; }
    done
}

pg_config_here() {
    if [[ -n $(here) ]]; then echo "/usr/lib/postgresql/$(here)/bin/pg_config"; else make -s --no-print-directory print-pg-config; fi
}

results=()
failures=0
run() {
    local what=$1 status
    shift
    # Not `"$@" || ..`, in which `set -e` would not count.
    set +e
    (set -e; "$@")
    status=$?
    set -e
    case $status in
        0) results+=("$what: passed") ;;
        75) results+=("$what: skipped, not to be had") ;;
        *) results+=("$what: FAILED"); failures=$((failures + 1)) ;;
    esac
}

for major in "${majors[@]}"; do run "packages of PostgreSQL $major" package "$major"; done
run 'the zip of make dist' archive
printf '%s\n' "${results[@]}"
((failures == 0))
