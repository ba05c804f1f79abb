#!/bin/bash
# Feeds every parser what a fuzzer makes up: scripts/fuzz.sh SECONDS [target..]. Starts from fuzz/corpus, keeps what is new
# in fuzz/found, and stops at the first input for which a property does not hold: that one is below fuzz/artifacts.
#
# What of fuzz/found reaches code that fuzz/corpus does not is added to the corpus by the target's own program, below
# fuzz/target: <program> -set_cover_merge=1 -use_counters=0 fuzz/corpus/<target> fuzz/found/<target>
#
# No sanitizer: the parsers are safe Rust, and without one the stable toolchain will do.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?for how many seconds}
targets=("${@:2}")
# The C++ compiler that scripts/prerequisites.sh installs.
export CXX=${CXX:-clang++}
build=(--sanitizer none --features "${FEATURE:?of the server, as in sync_outbox/pg15}")

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
[[ ${#targets[@]} -gt 0 ]] || mapfile -t targets < <(cargo fuzz list)
cargo fuzz build "${build[@]}"
for target in "${targets[@]}"; do
    echo "== $target"
    mkdir -p "fuzz/found/$target"
    cargo fuzz run "${build[@]}" "$target" "fuzz/found/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -print_final_stats=1 -verbosity=0 -timeout=10
done
