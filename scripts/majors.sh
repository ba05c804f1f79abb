#!/bin/bash
# The end-to-end tests on other majors than that of PG_CONFIG: scripts/majors.sh core|full [MAJOR...]
#
# 16 comes from a Python package (scripts/postgresql-16.sh), the others are those of Debian releases, each in a root of its
# own (scripts/in-root.sh). A major that is not to be had is skipped by name; on a CI machine one that was asked for by
# number is an error. Ends with a line for each major, and with status 1 if a test failed.
set -uo pipefail
cd "$(dirname "$0")/.."

selection=$1
shift
majors=("$@")
[[ ${#majors[@]} -gt 0 ]] || majors=(16 17 18 19)
: "${ROOTS:=/var/cache/sync_outbox/roots}" "${JOBS:=2}"

# Of capture, flush, worker, drain, offline times, hub, copies and upgrades.
core='tests/harness/test_smoke.py
    tests/capture/test_changes.py tests/capture/test_keys.py tests/capture/test_values.py tests/capture/test_truncate.py
    tests/capture/test_statements.py tests/capture/test_backfill.py tests/capture/test_newer_majors.py
    tests/push/test_flush.py tests/push/test_drain.py tests/push/test_offline.py tests/push/test_key_order.py
    tests/worker tests/hub/test_apply.py tests/hub/test_conflicts.py tests/hub/test_hub_values.py
    tests/administration/test_copies.py tests/administration/test_upgrade_scripts.py
    tests/administration/test_update_from_0_1_0.py tests/administration/test_version.py
    tests/administration/test_declarations.py tests/administration/test_install.py'
case $selection in
    core) tests=$core ;;
    full) tests=tests ;;
    *) echo "which tests: core or full?" >&2; exit 2 ;;
esac

# Runs make with the server of a major. Status 75: it is not to be had.
with_major() { # major, arguments of make
    local major=$1
    shift
    if [[ $major == 16 ]]; then
        # A directory of its own: what lies in target/release is for another server.
        CARGO_TARGET_DIR=$ROOTS/16/target make --no-print-directory "$@" PG_CONFIG="$PWD/target/postgresql-16/bin/pg_config"
    else
        scripts/in-root.sh "$major" make --no-print-directory "$@" PG_CONFIG="/usr/lib/postgresql/$major/bin/pg_config"
    fi
}

prepare() { # major
    if [[ $1 == 16 ]]; then
        scripts/postgresql-16.sh || return 1
        [[ -x target/postgresql-16/bin/pg_config ]] || return 75
    else
        with_major "$1" prerequisites || return
    fi
    with_major "$1" build
}

own=$(make --no-print-directory -s print-pg-major)
failed=0
lines=()
for major in "${majors[@]}"; do
    [[ $major != "$own" ]] || continue
    echo "── PostgreSQL $major"
    log=$(mktemp)
    prepare "$major"
    status=$?
    if [[ $status -eq 0 ]]; then
        with_major "$major" e2e T="$(echo $tests)" JOBS="$JOBS" | tee "$log"
        status=${PIPESTATUS[0]}
        lines+=("PostgreSQL $major: $(sed -nE 's/^=+ (.*) in .*/\1/p' "$log" | tail -n 1)")
    elif [[ $status -eq 75 && ! (${CI:-} == true && $# -gt 0) ]]; then
        lines+=("PostgreSQL $major: skipped, it is not to be had")
        status=0
    else
        lines+=("PostgreSQL $major: cannot be built or had (status $status)")
    fi
    rm "$log"
    [[ $status -eq 0 ]] || failed=1
done
printf '%s\n' "${lines[@]}"
exit $failed
