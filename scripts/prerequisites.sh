#!/bin/bash
# Installs what building and testing need where that is possible, on a Debian and as root, and nothing that is there
# already. Elsewhere it installs nothing and says what is missing. Rust is not installed: how it comes onto a machine
# (rustup, a distribution, an image) is its owner's choice.
set -euo pipefail

# No error here: under sudo it is often out of sight.
if ! command -v cargo >/dev/null; then
    echo "cargo was not found: building needs Rust 1.96, for example from https://rustup.rs" >&2
fi

# ------------------------------------------------------------------------------------------------- another machine's way

# The programs and modules behind the packages below, and what each is for.
missing_tools() {
    local program module
    for program in cc clang pkg-config make; do
        command -v $program >/dev/null || echo "$program (building)"
    done
    for module in pytest pytest_timeout xdist hypothesis psycopg trustme; do
        /usr/bin/python3 -c "import $module" 2>/dev/null || echo "Python's $module (end-to-end tests)"
    done
    command -v ip >/dev/null || echo 'ip (tests of networks)'
    command -v patchelf >/dev/null || echo 'patchelf (the test of pg_upgrade)'
}

if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    missing=$(missing_tools)
    [[ -z $missing ]] || printf 'Nothing is installed here. Missing:\n%s\n' "$missing" >&2
    exit 0
fi

# -------------------------------------------------------------------------------------------------------------- Debian's

installed() {
    [[ $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]
}

# The server that the Makefile works for; where there is none yet, that of this Debian.
major=${PG_MAJOR:-}
if [[ ${PG_CONFIG:-} =~ ^/usr/lib/postgresql/([0-9]+)/ ]]; then major=${BASH_REMATCH[1]}; fi
major_of_debian() {
    apt-cache depends postgresql 2>/dev/null | sed -nE 's/.*Depends: postgresql-([0-9]+)$/\1/p' || true
}
major=${major:-$(major_of_debian)}
# A new machine has no lists of packages yet.
if [[ -z $major ]]; then
    apt-get update -q
    major=$(major_of_debian)
fi

packages=(
    gcc libc6-dev libicu-dev pkg-config clang libclang-dev libfaketime iproute2 procps
    python3-pip patchelf
    python3-pytest python3-pytest-timeout python3-pytest-xdist python3-hypothesis python3-psycopg python3-trustme
)
extensions=()
# A server that comes from elsewhere is complete as it is.
if [[ ${PG_CONFIG:-} != /* || $PG_CONFIG == /usr/lib/postgresql/* ]]; then
    packages+=("postgresql-$major" "postgresql-server-dev-$major")
    extensions=("postgresql-$major-cron" "postgresql-$major-repack")
fi

missing=()
for package in "${packages[@]}" "${extensions[@]}"; do
    installed "$package" || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

apt-get update -q
# What Debian does not have for every major: the tests that need it are skipped by name.
for extension in "${extensions[@]}"; do
    if [[ -z $(apt-cache madison "$extension") ]]; then
        echo "$extension is not to be had: the tests that need it will be skipped" >&2
        missing=("${missing[@]/#$extension}")
    fi
done
echo "installing ${missing[*]}"
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends ${missing[*]}
