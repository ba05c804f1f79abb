#!/bin/bash
# In a clean Debian with the packages below /packages: installs the first, follows the README, upgrades to the second
# beside the running server, and removes it. Called by scripts/test-deb.sh with the major.
set -euo pipefail

major=$1
package=postgresql-$major-sync-outbox
documents=/usr/share/doc/$package
conf=/etc/postgresql/$major/main/postgresql.conf
log=/var/log/postgresql/postgresql-$major-main.log
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])' 2>/dev/null || true)

step() { printf '\n== PostgreSQL %s: %s\n' "$major" "$1"; }
fail() { printf 'FAILED: %s\n' "$1" >&2; exit 1; }
as_postgres() { (cd /tmp/quick_start && exec setpriv --reuid=postgres --regid=postgres --init-groups "$@"); }
sql() { as_postgres psql -X -A -t -q -v ON_ERROR_STOP=1 -d "$1" -c "$2"; }
control() { pg_ctlcluster "$major" main "$1" -- -w; }
postmaster() { head -n 1 "/var/lib/postgresql/$major/main/postmaster.pid"; }
installcheck() { PGHOST=/var/run/postgresql PGUSER=postgres as_postgres make -s -C /source installcheck; }
installed() { dpkg-query -W -f '${Version}' "$package"; }
trap 'kill $(jobs -p) 2>/dev/null || true; pg_ctlcluster -m immediate $major main stop 2>/dev/null || true' EXIT

# Until SQL gives what it should.
eventually() {
    local answer deadline=$((SECONDS + 30))
    until answer=$(sql "$1" "$2") && [[ $answer == "$3" ]]; do
        ((SECONDS < deadline)) || fail "$2: $answer instead of $3"
        sleep 0.1
    done
}

step 'apt install ./..deb'
apt-get update -q
cd /packages/first
DEBIAN_FRONTEND=noninteractive apt-get install -q -y ./"$package"_*.deb
# Of the example receiver, as the package suggests.
DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3-psycopg
cmp /source/README.md "$documents/README.md"
[[ -n $port ]] || port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')

step 'preloaded'
# No TCP: other servers may run on this machine.
pg_createcluster "$major" main -o listen_addresses='' >/dev/null
echo "shared_preload_libraries = 'sync_outbox'" >>"$conf"
control start

step 'the quick start of the README'
install -d -o postgres /tmp/quick_start
(cd /source/tests && setpriv --reuid=postgres --regid=postgres --init-groups env PYTHONDONTWRITEBYTECODE=1 \
    python3 -m support.quick_start "/usr/lib/postgresql/$major/bin" /var/run/postgresql "$documents/examples" "$port" \
    /tmp/quick_start)
installcheck

step 'the package is upgraded while the server runs'
as_postgres python3 "$documents/examples/receiver/receiver.py" --dsn dbname=hub --token-file token \
    --listen "127.0.0.1:$port" &
server=$(postmaster)
before=$(installed)
cd /packages/second
DEBIAN_FRONTEND=noninteractive apt-get install -q -y ./"$package"_*.deb
dpkg --compare-versions "$(installed)" gt "$before" || fail "still $before"
[[ $(postmaster) == "$server" ]] || fail 'the server was restarted'
# What is in its memory is the first library, which has no name any more.
grep -q 'sync_outbox.so (deleted)' "/proc/$server/maps" || fail 'the server does not have the library of before'
sql store "INSERT INTO sales VALUES (4, 'while upgraded', 1)"
eventually hub 'SELECT product FROM sales WHERE id = 4' 'while upgraded'
installcheck

step 'the server is restarted with the new library'
control restart
grep 'sync_outbox.so' "/proc/$(postmaster)/maps" | grep -qv deleted || fail 'the server does not have the new library'
sql store 'ALTER EXTENSION sync_outbox UPDATE'
sql store "UPDATE sales SET product = 'after the restart' WHERE id = 4"
eventually hub 'SELECT product FROM sales WHERE id = 4' 'after the restart'
installcheck

step "the package's own test"
(cd /source && debian/tests/installcheck)

step 'removed'
for database in store hub; do sql $database 'DROP EXTENSION sync_outbox CASCADE'; done
sed -i '/^shared_preload_libraries/d' "$conf"
control restart
DEBIAN_FRONTEND=noninteractive apt-get purge -q -y "$package"
left=$(find /usr /etc /var/lib/dpkg/info -name '*sync[-_]outbox*')
[[ -z $left ]] || fail "left behind: $left"
[[ $(sql store 'SELECT count(*) FROM sales') == 3 ]] || fail 'the sales are gone'
! grep -E 'PANIC|terminated by signal' "$log" || fail 'see above'
control stop
