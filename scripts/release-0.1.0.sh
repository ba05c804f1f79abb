#!/bin/bash
# Builds the released version 0.1.0 from this repository's history, for the server of PG_CONFIG, and prints the directory
# that it is installed from: `make -C DIRECTORY install-files` with the environment variable CARGO_TARGET_DIR, which is the
# second line.
#
# Everything lies below $RELEASES, by default in the user's cache: the old version needs another pgrx, so that its build
# shares nothing with that of this tree. Exit status 75 says that the old version is not to be had, and why.
set -euo pipefail
cd "$(dirname "$0")/.."

commit=070bd3628479aee5423be48eae72c50ff78fdf11
: "${RELEASES:=${XDG_CACHE_HOME:-$HOME/.cache}/sync_outbox/releases}"
: "${PG_CONFIG:=$(make --no-print-directory -s print-pg-config)}"
source=$RELEASES/0.1.0/source
major=$("$PG_CONFIG" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
# One for each server: `make install-files` takes whatever was built last.
export CARGO_TARGET_DIR=$RELEASES/0.1.0/target-$major

unobtainable() {
    echo "sync_outbox 0.1.0 is not to be had: $1" >&2
    exit 75
}

if [[ ! -d $source ]]; then
    git cat-file -e "$commit^{commit}" 2>/dev/null || unobtainable 'this tree has no history that goes back to it'
    mkdir -p "$RELEASES/0.1.0"
    unpacked=$(mktemp -d "$source.XXXXXX")
    git archive "$commit" | tar -x -C "$unpacked"
    mv "$unpacked" "$source"
fi

grep -q "^pg$major = " "$source/Cargo.toml" || unobtainable "it does not know PostgreSQL $major"

if [[ ! -f $CARGO_TARGET_DIR/release/libsync_outbox.so ]]; then
    # Without the network cargo cannot fetch the old pgrx, and says so.
    (cd "$source" && cargo fetch --locked) >&2 || unobtainable 'its dependencies cannot be fetched'
    make --no-print-directory -C "$source" build PG_CONFIG="$PG_CONFIG" >&2
fi

echo "$source"
echo "$CARGO_TARGET_DIR"
