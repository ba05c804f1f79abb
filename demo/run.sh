#!/bin/bash
# On two throwaway servers: a store captures, a hub applies, the network goes and comes back, and in the end
# both hold the same. Exit status 0 only if they do. Stops and removes everything it started, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

transactions=${TRANSACTIONS:-400} # of each of three branches, online and again offline
psql_format=(-P footer=off -P null=∅)

# ------------------------------------------------------------------------------------------------------------ narration

if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
act() { printf '\n%s── %s %s\n' "$bold" "$1" "$plain"; }
say() { printf '\n%s\n' "$1"; }
fail() { printf '\n%sFAILED: %s%s\n' "$bold" "$1" "$plain" >&2; exit 1; }

# ---------------------------------------------------------------------------------------------------------- the machinery

where=''
receiver_pid=''

cleanup() {
    local status=$? failed=''
    [[ $status -ne 0 && $status -ne 130 ]] && failed=yes
    trap - EXIT
    set +e
    stop_receiver
    if [[ -n $where ]]; then
        for server in store hub; do
            [[ -f $where/$server/postmaster.pid ]] && "${as_server[@]}" "$bin/pg_ctl" -D "$where/$server" -m immediate -s stop
            if [[ $failed && -f $where/$server.log ]]; then
                echo "the last lines of the $server's log:" >&2
                tail -n 15 "$where/$server.log" >&2
            fi
        done
        [[ $failed && -f $where/receiver.log ]] && tail -n 5 "$where/receiver.log" >&2
        rm -rf "$where"
    fi
    exit "$status"
}

# PostgreSQL refuses to run as root. Nothing is inherited: PG* variables and RUST_BACKTRACE would change what is seen. All of
# it replaces itself, so that the pid of what is started in the background is its own.
as_server=(env -i -C / PATH="$PATH" LC_ALL=C.UTF-8 HOME=/)
[[ $EUID -eq 0 ]] && as_server=(setpriv --reuid=postgres --regid=postgres --init-groups "${as_server[@]}")

own() { [[ $EUID -eq 0 ]] && chown postgres: "$@"; return 0; }

start_server() {
    "${as_server[@]}" "$bin/pg_ctl" -D "$where/$1" -l "$where/$1.log" -s -w start
}

make_server() { # name, number, further lines of its configuration
    "${as_server[@]}" "$bin/initdb" -D "$where/$1" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >/dev/null
    # Nobody else can reach them: no TCP, and sockets in a private directory. fsync is off because they do not outlive this.
    "${as_server[@]}" tee -a "$where/$1/postgresql.conf" >/dev/null <<CONF
listen_addresses = ''
unix_socket_directories = '$where/sockets'
port = $2
fsync = off
log_min_messages = log
$3
CONF
    start_server "$1"
    client "$1" postgres -c "CREATE DATABASE $1"
}

declare -A port=([store]=1 [hub]=2)
client() { # server, database, psql's arguments
    local server=$1 database=$2
    shift 2
    env -i PATH="$PATH" LC_ALL=C.UTF-8 TOKEN="${token:-}" PGOPTIONS='-c client_min_messages=warning' \
        "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h "$where/sockets" -p "${port[$server]}" -U postgres -d "$database" "$@"
}

# Quietly; with -At: a value.
store() { client store store "$@"; }
hub() { client hub hub "$@"; }

typed() { # server, statement
    printf '%s%s=# %s%s\n' "$dim" "$1" "$2" "$plain"
}

# With the statement as it would be typed, and the answer as psql shows it.
show() { # server, statement, psql's options
    typed "$1" "$2"
    client "$1" "$1" "${psql_format[@]}" "${@:3}" -c "$2"
}

# The answer of a function that returns void is not worth two lines.
call() { # server, statement
    typed "$1" "$2"
    client "$1" "$1" -At -c "$2" | sed '/^$/d'
}

wait_for() { # seconds, what, statement at the store that answers t
    local until=$((SECONDS + $1))
    until [[ $(store -At -c "$3") == t ]]; do
        if ((SECONDS >= until)); then
            store -c 'SELECT table_name, op, status, error_message, count(*) FROM sync_outbox_queue GROUP BY 1, 2, 3, 4' >&2
            fail "$2: not within $1 s"
        fi
        sleep 0.1
    done
}

start_receiver() { # port, 0 for any that is free
    : >"$where/receiver.log" && own "$where/receiver.log"
    "${as_server[@]}" /usr/bin/python3 "$PWD/examples/receiver/receiver.py" --listen "127.0.0.1:$1" --token-file "$where/token" \
        --dsn "host=$where/sockets port=${port[hub]} dbname=hub user=receiver" 2>>"$where/receiver.log" &
    receiver_pid=$!
    for _ in {1..100}; do
        receiver_port=$(sed -nE 's|.*listening on http://127.0.0.1:([0-9]+)/.*|\1|p' "$where/receiver.log")
        [[ -n $receiver_port ]] && return
        kill -0 "$receiver_pid" 2>/dev/null || break
        sleep 0.1
    done
    fail "the receiver did not start"
}

stop_receiver() {
    [[ -n $receiver_pid ]] || return 0
    kill "$receiver_pid" 2>/dev/null
    wait "$receiver_pid" 2>/dev/null
    receiver_pid=''
}

# Adds the keys of what a statement captures to the ledger, in the statement's own transaction.
captured() { # statement
    typed store "$1"
    store -At <<SQL
BEGIN;
$1
\copy (SELECT dedup_key FROM sync_outbox WHERE txid = pg_current_xact_id()) TO PROGRAM 'cat >> $where/ledger/committed.keys'
COMMIT;
SQL
}

workload() {
    /usr/bin/python3 demo/workload.py --dsn "host=$where/sockets port=${port[store]} dbname=store user=postgres" \
        --ledger "$where/ledger" --transactions "$transactions" --seed "$1"
}

# --------------------------------------------------------------------------------------------------------------- the story

act 'Building'
scripts/prerequisites.sh
make --no-print-directory -s build

where=$(mktemp -d /tmp/sync_outbox_demo.XXXXXX)
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
chmod 755 "$where"
# A private copy of PostgreSQL with the extension in it, made as the tests make theirs: the system's is not touched.
bin=$(PYTHONPATH=tests /usr/bin/python3 -B -c 'import pathlib, sys; from support import prefix; print(prefix.build(pathlib.Path(sys.argv[1])))' "$where/pg")
mkdir "$where/sockets" "$where/ledger"
touch "$where/ledger/"{committed,rolled-back}.keys
own "$where" "$where/sockets"
token=$(head -c 24 /dev/urandom | base64)
(umask 077 && echo "$token" >"$where/token")
own "$where/token"
make_server store "${port[store]}" "shared_preload_libraries = 'sync_outbox'
sync_outbox.enabled = off
sync_outbox.retry_max_interval = 2s"
make_server hub "${port[hub]}" ''
for server in store hub; do
    # The hub is told that nothing of it is sent automatically: it has nothing to send.
    client "$server" "$server" -c 'CREATE EXTENSION sync_outbox' -f demo/schema.sql 2> >(sed '/^NOTICE:\|^HINT:/d' >&2)
done
echo "Two servers are up: a store, with shared_preload_libraries = 'sync_outbox', and a hub."

act 'The hub says which tables may be written, and who may knock'
call hub "SELECT sync_outbox_accept(t) FROM unnest('{branches,products,customers,sales,sale_lines,\"\\\"stock movements\\\"\"}'::regclass[]) t;"
call hub 'CREATE ROLE receiver LOGIN;'
call hub 'GRANT EXECUTE ON FUNCTION sync_outbox_apply_text(text) TO receiver;'
start_receiver 0
url=http://127.0.0.1:$receiver_port
say "The receiver (examples/receiver) listens on $url and calls sync_outbox_apply_text()."

act 'Act 1: one table, three changes, one flush (automatic sending is off)'
configure="SELECT sync_outbox_configure(json_build_object('webapp_base_url', '$url', 'sync_upload_token', :'token'));"
typed store '\getenv token TOKEN'
typed store "$configure"
printf '%s\n' '\getenv token TOKEN' "$configure" | store -At
call store "SELECT sync_outbox_attach('branches');"
captured "INSERT INTO branches VALUES ('HQ', 'Hauptgeschäft', '1999-12-31', NULL, '{\"city\": \"Köln\"}');"
captured "UPDATE branches SET opened = 'infinity' WHERE code = 'HQ';"
captured "UPDATE branches SET code = 'HQ-1' WHERE code = 'HQ';"
show store 'SELECT id, op, pk, data, status FROM sync_outbox ORDER BY id;'
typed store 'SELECT sync_outbox_flush();'
answer=$(store -At -c 'SELECT sync_outbox_flush()')
echo "$answer"
[[ $answer == '{"ok": true, "pending": 3, "sent": 3, "acked": 3}' ]] || fail 'the flush did not answer what it should'
show hub 'SELECT code, name, opened, address FROM branches;'

act 'Act 2: the worker'
say 'What was there before anybody thought of a hub comes by backfill:'
store -f demo/stock.sql
for table in products customers; do
    call store "SELECT sync_outbox_attach('$table');"
    captured "SELECT sync_outbox_backfill('$table');"
done
say 'The rest starts empty. Stock movements go first:'
for table in sales sale_lines; do call store "SELECT sync_outbox_attach('$table');"; done
call store "SELECT sync_outbox_attach('\"stock movements\"', priority => 'HIGH', branch_column => 'branch');"
call store 'ALTER SYSTEM SET sync_outbox.enabled = on;'
call store 'SELECT pg_reload_conf();'
say 'Three branches work: sales, cascades, key changes, upserts, COPY, savepoints, rollbacks ...'
workload online
wait_for 60 'the outbox is empty' 'SELECT NOT EXISTS (SELECT FROM sync_outbox)'
say '... and the worker has sent it all:'
show store "SELECT backend_type, state, query FROM pg_stat_activity WHERE backend_type LIKE 'sync_outbox%';"
show store 'SELECT target, clean, total, breaker, last_success_at FROM sync_outbox_overview();'

act 'Act 3: the hub goes away, and the store does not notice'
stop_receiver
"${as_server[@]}" "$bin/pg_ctl" -D "$where/hub" -m fast -s stop
say 'The receiver and the hub are down. The branches work on:'
workload offline
wait_for 30 'changes turn FAILED' "SELECT EXISTS (SELECT FROM sync_outbox WHERE status = 'FAILED')"
show store "SELECT priority, status, count(*), max(attempt_count) AS attempts, max(error_message) AS error FROM sync_outbox_queue GROUP BY 1, 2 ORDER BY 1, 2;"
typed store 'SELECT sync_outbox_flush();'
answer=$(store -At -c 'SELECT sync_outbox_flush()')
echo "$answer"
[[ $answer == '{"ok": false, '*'"error": "offline"'* ]] || fail 'an unreachable hub is not called offline'
show store 'SELECT target, clean, total, pending, failed, breaker, consecutive_failures, next_try_at, last_error FROM sync_outbox_overview();' -x

act 'Act 4: the hub comes back'
backlog=$(store -At -c 'SELECT count(*) FROM sync_outbox')
start_server hub
start_receiver "$receiver_port"
began=$(date +%s%N)
say 'Nothing to type. The worker tries again, and everything drains:'
wait_for 120 'the outbox is empty' 'SELECT NOT EXISTS (SELECT FROM sync_outbox)'
echo "$backlog changes in $((($(date +%s%N) - began) / 1000000)) ms"
show store 'SELECT mode, status, pending, sent, acked, failed, error FROM sync_outbox_history ORDER BY id DESC LIMIT 4;'

act 'The proof'
hub <<SQL
CREATE EXTENSION postgres_fdw;
CREATE SERVER store FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$where/sockets', port '${port[store]}', dbname 'store');
CREATE USER MAPPING FOR postgres SERVER store OPTIONS (user 'postgres');
CREATE SCHEMA store;
IMPORT FOREIGN SCHEMA public LIMIT TO (branches, products, customers, sales, sale_lines, "stock movements") FROM SERVER store INTO store;
SQL
say 'The hub looks at the store'\''s tables (postgres_fdw) and compares row by row, both ways:'
typed hub 'TABLE store.sales EXCEPT ALL TABLE public.sales;  -- missing at the hub; the other way round: surplus'
different=0
for table in branches products customers sales sale_lines '"stock movements"'; do
    read -r rows missing surplus < <(hub -At -F ' ' -c "SELECT (SELECT count(*) FROM public.$table),
        (SELECT count(*) FROM (TABLE store.$table EXCEPT ALL TABLE public.$table) d),
        (SELECT count(*) FROM (TABLE public.$table EXCEPT ALL TABLE store.$table) d)")
    printf '%-18s %6d rows, %d missing, %d surplus\n' "$table" "$rows" "$missing" "$surplus"
    different=$((different + missing + surplus))
    [[ $rows -gt 0 ]] || fail "$table is empty: that proves nothing"
done

say 'And by key: the store'\''s ledger of committed changes against the keys that the hub has applied.'
read -r committed lost phantom undone < <(hub -At -F ' ' <<SQL
CREATE TEMP TABLE committed (key uuid);
CREATE TEMP TABLE rolled_back (key uuid);
\copy committed FROM '$where/ledger/committed.keys'
\copy rolled_back FROM '$where/ledger/rolled-back.keys'
SELECT (SELECT count(*) FROM committed),
       (SELECT count(*) FROM (TABLE committed EXCEPT ALL SELECT dedup_key FROM sync_outbox_applied) lost),
       (SELECT count(*) FROM (SELECT dedup_key FROM sync_outbox_applied EXCEPT ALL TABLE committed) phantom),
       (SELECT count(*) FROM rolled_back JOIN sync_outbox_applied ON dedup_key = key);
SQL
)
printf '%d changes committed: lost %d, phantom %d (of the rolled back ones %d)\n' "$committed" "$lost" "$phantom" "$undone"

[[ $different -eq 0 && $lost -eq 0 && $phantom -eq 0 && $undone -eq 0 ]] || fail 'the hub is not equal to the store'
printf '\n%sThe hub equals the store. Lost 0, phantom 0.%s\n' "$bold" "$plain"
