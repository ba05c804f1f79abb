#!/bin/bash
# Installs what building and testing need on Debian, and nothing that is there already. Rust is not installed: how it
# comes onto a machine (rustup, a distribution, an image) is its owner's choice.
set -euo pipefail

packages=(
    gcc libc6-dev pkg-config clang libclang-dev
    postgresql-15 postgresql-server-dev-15 postgresql-15-cron postgresql-15-repack libfaketime iproute2
    python3-pip patchelf
    python3-pytest python3-pytest-timeout python3-pytest-xdist python3-hypothesis python3-psycopg python3-trustme
)

if ! command -v cargo >/dev/null; then
    echo "cargo was not found: install Rust 1.95 or later, for example from https://rustup.rs" >&2
    exit 1
fi

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [[ $status == "install ok installed" ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

as_root=()
if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || { echo "missing packages, and neither root nor sudo: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "installing ${missing[*]}"
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
