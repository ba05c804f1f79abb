#!/bin/bash
# Holds the dependencies to deny.toml: licences, bans and origins always; advisories wherever their database can be had,
# from the network or as it was fetched the last time.
set -euo pipefail
cd "$(dirname "$0")/.."

# Compiles for minutes, once.
command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
cargo deny --locked check licenses bans sources
if cargo deny --locked fetch db 2>/dev/null; then
    cargo deny --locked check advisories
elif compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/advisory-db-*" >/dev/null; then
    echo "the advisory database cannot be fetched: advisories are checked against that of the last time"
    cargo deny --locked --offline check advisories
else
    echo "the advisory database cannot be fetched: ADVISORIES WERE NOT CHECKED" >&2
fi
