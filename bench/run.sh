#!/bin/bash
# The benchmarks: builds what is measured and what measures, then runs the parts and writes docs/performance.md.
#   QUICK=1                 at most 5 minutes, with smaller numbers
#   PARTS="capture drain"   only these; the tables of the others stay as they are
#   REPORT=FILE             instead of docs/performance.md
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/prerequisites.sh
# A peer. Where it cannot be had, the tables say so.
if ! dpkg-query -W -f '${Status}' postgresql-15-pgq3 2>/dev/null | grep -q '^install ok installed'; then
    as_root=()
    [[ $EUID -eq 0 ]] || as_root=(sudo)
    as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q)
    { "${as_root[@]}" update && "${as_root[@]}" install -y --no-install-recommends postgresql-15-pgq3; } ||
        echo "postgresql-15-pgq3 cannot be installed: measuring without pgq" >&2
fi
make --no-print-directory -s build bench-receiver

# Debian's own python, because psycopg is Debian's. What the tests stand on, the benchmarks stand on too.
PYTHONPATH=tests exec /usr/bin/python3 -B bench/main.py
