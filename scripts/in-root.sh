#!/bin/bash
# Runs a command with the PostgreSQL of another Debian: scripts/in-root.sh MAJOR COMMAND...
#
# The other Debian lies below $ROOTS and is made where it is missing (root, on a Debian). The command sees this tree, which
# it cannot write, and the machine's own Rust; it builds into a directory of that root. Exit status 75 says that this major
# is not to be had.
set -euo pipefail
cd "$(dirname "$0")/.."

major=$1
shift
: "${ROOTS:=/var/cache/sync_outbox/roots}"
root=$ROOTS/$major

unobtainable() {
    echo "PostgreSQL $major is not to be had: $1" >&2
    exit 75
}

# Where Debian has the major. `experimental` is no release of its own: it stands beside `sid`.
case $major in
    15) suite=bookworm ;;
    17) suite=trixie ;;
    18) suite=forky ;;
    19) suite=sid ;;
    *) unobtainable 'no Debian has it' ;;
esac

# ----------------------------------------------------------------------------------------------------------- making it

# Of this machine's Debian, so that it is one that can be reached.
mirror() {
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | sed -nE '/^Debian /{s///p;q}'
}

make_root() {
    local new
    [[ $EUID -eq 0 ]] || unobtainable 'making a root needs root'
    if ! command -v debootstrap >/dev/null; then
        command -v apt-get >/dev/null || unobtainable 'this is no Debian'
        apt-get update -q && apt-get install -q -y --no-install-recommends debootstrap
    fi
    # A new machine has no lists of packages yet, which say where they come from.
    [[ -n $(mirror) ]] || apt-get update -q
    mkdir -p "$ROOTS"
    new=$(mktemp -d "$root.XXXXXX")
    # The script of sid is good for every suite that this debootstrap does not know by name.
    debootstrap --variant=minbase --include=ca-certificates,make "$suite" "$new" "$(mirror)" sid >"$new.log" 2>&1 || {
        tail -n 3 "$new.log" >&2
        rm -rf --one-file-system "$new" "$new.log"
        unobtainable "there is no $suite"
    }
    rm "$new.log"
    if [[ $suite == sid ]]; then
        sed 's/ sid / experimental /' "$new/etc/apt/sources.list" >"$new/etc/apt/sources.list.d/experimental.list"
        # Of that only what this is for; everything else comes from sid.
        printf '%s\n' "Package: postgresql-$major* postgresql-server-dev-$major* libpq* libecpg* libpgtypes*" \
            'Pin: release a=experimental' 'Pin-Priority: 990' >"$new/etc/apt/preferences.d/postgresql"
    fi
    # Packages start no server and make no cluster: the tests have servers of their own.
    printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
    chmod 755 "$new/usr/sbin/policy-rc.d" "$new"
    mkdir -p "$new/etc/postgresql-common"
    echo 'create_main_cluster = false' >"$new/etc/postgresql-common/createcluster.conf"
    mkdir "$new/source" "$new/target"
    mv "$new" "$root"
}

[[ -d $root ]] || make_root

# ------------------------------------------------------------------------------------------------------------ using it

rustup=${RUSTUP_HOME:-$HOME/.rustup}
cargo=${CARGO_HOME:-$HOME/.cargo}
mkdir -p "$root$rustup" "$root$cargo"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# How this machine reaches its Debian: proxies, and whether an archive may be old.
apt-config dump --format '%F "%v";%n' Acquire | sed -nE '/^Acquire::(https?|Retries|Check)/p' \
    >"$root/etc/apt/apt.conf.d/99machine"
# Every tree is seen at the same path, and cargo tells sources by their times: of another tree than the last one nothing
# that was built of its own crates counts.
if [[ $(cat "$root/source-of-target" 2>/dev/null) != "$PWD" ]]; then
    rm -rf --one-file-system "$root"/target/{,deb/cargo/}release/.fingerprint/sync_outbox*
    echo "$PWD" >"$root/source-of-target"
fi

# The mounts are those of this process alone and end with it: nothing that is deleted below the root later can reach
# through them.
export root rustup cargo
exec unshare --mount --propagation private bash -euc '
    # A mount of its own, so that what runs in it can have mounts of its own as well.
    mount --bind "$root" "$root"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t proc proc "$root/proc"
    mount --bind "$rustup" "$root$rustup"
    mount --bind "$cargo" "$root$cargo"
    mount --bind "$PWD" "$root/source"
    mount -o remount,bind,ro "$root/source"
    exec chroot "$root" /usr/bin/env -i -C /source HOME="$HOME" USER=root LANG=C.UTF-8 CI="${CI:-}" \
        PATH="$cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        RUSTUP_HOME="$rustup" CARGO_HOME="$cargo" CARGO_TARGET_DIR=/target PYTHONDONTWRITEBYTECODE=1 "$@"
' in-root "$@"
