#!/bin/bash
# Checks the extension on a running server, with psql alone, in a database that it makes and drops: make installcheck.
#
# The server is named as for psql, by PGHOST, PGPORT, PGUSER and so on; the role must be a superuser, as for CREATE
# EXTENSION. The target is a port of this machine at which nobody listens: nothing is sent to anybody, unless the server
# has sync_outbox.proxy, which gets the four made-up rows of this check. Each line says what was checked. Exit status 1:
# something failed.
set -uo pipefail

name=sync_outbox_installcheck_$$
checks=0
failures=0
exists=
roles=

# A role or a server may have settings of its own; these are what is checked with.
export PGOPTIONS="${PGOPTIONS:-} -c search_path=public -c client_min_messages=warning -c statement_timeout=60s"
PGOPTIONS+=' -c default_transaction_isolation=read\ committed -c default_transaction_read_only=off'
export PGAPPNAME=sync_outbox_installcheck PGCONNECT_TIMEOUT=${PGCONNECT_TIMEOUT:-10}

# SQL in the database of this check, or in that of $2; the answer is in $answer, also what went wrong.
ask() {
    answer=$(${PSQL:-psql} -X -w -A -t -q -v ON_ERROR_STOP=1 -d "${2:-$name}" -c "$1" 2>&1)
}

ok() {
    checks=$((checks + 1))
    echo "ok    $1"
}

failed() {
    checks=$((checks + 1))
    failures=$((failures + 1))
    printf 'FAIL  %s\n' "$1"
    [[ -z ${2:-} ]] || printf '%s\n' "$2" | sed 's/^/      /'
}

# Whether SQL gives what it should: check TEXT EXPECTED SQL.
check() {
    if ! ask "$3"; then
        failed "$1" "$answer"
    elif [[ $answer != "$2" ]]; then
        failed "$1" "expected \"$2\", got \"$answer\""
    else
        ok "$1"
    fi
}

# What every database has more than a new one, by the number of rows in the catalogs.
catalogs="SELECT concat_ws(' ', (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_type),
    (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_event_trigger), (SELECT count(*) FROM pg_namespace),
    (SELECT count(*) FROM pg_extension), (SELECT count(*) FROM pg_init_privs), (SELECT count(*) FROM pg_depend))"

finish() {
    trap - EXIT
    if [[ -n $exists ]]; then
        # The worker of the extension may be connected.
        ask "DROP DATABASE IF EXISTS $name WITH (FORCE)" "$home" || failed "the database $name is dropped again" "$answer"
        # CREATE EXTENSION makes two roles where they are missing.
        for role in $roles; do ask "DROP ROLE IF EXISTS $role" "$home" || true; done
    fi
    if ((failures)); then
        echo "installcheck: $failures of $checks checks failed"
        exit 1
    fi
    echo "installcheck: $checks checks passed in $SECONDS s"
    exit 0
}

give_up() {
    failed "$@"
    finish
}

# ----------------------------------------------------------------------------------------------------------- the server

trap finish EXIT
trap 'failed "interrupted"; exit 1' INT TERM

home=${PGDATABASE:-postgres}
if ! command -v "${PSQL:-psql}" >/dev/null; then
    give_up 'psql is there' 'psql was not found: install the client programs of PostgreSQL, or put them on PATH'
fi
ask 'SHOW server_version' "$home" || give_up 'the server answers' "$answer
PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE name the server, as for psql."
ok "the server answers: PostgreSQL $answer"

ask "SELECT pg_is_in_recovery()" "$home"
[[ $answer != t ]] || give_up 'the server can be written' 'It is a standby: run this on its primary.'
ask "SELECT rolsuper FROM pg_roles WHERE rolname = current_user" "$home"
[[ $answer == t ]] || give_up 'the role may create the extension' 'CREATE EXTENSION needs a superuser: name one in PGUSER.'

ask "SELECT default_version FROM pg_available_extensions WHERE name = 'sync_outbox'" "$home"
[[ -n $answer ]] || give_up 'the extension is installed on this server' \
    'It is not: the server has no sync_outbox.control. Install the package, or use make install-files with the PG_CONFIG
of this server.'
version=$answer
ok "the extension is installed on this server: $version"

ask "SELECT string_agg(role, ' ') FROM unnest('{sync_outbox_admin,sync_outbox_operator}'::text[]) AS role
      WHERE to_regrole(role) IS NULL" "$home" && roles=$answer

# --------------------------------------------------------------------------------------------------------- the extension

# Of template0, because template1 may have the extension already, and some encodings are not supported.
ask "CREATE DATABASE $name TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'" "$home" ||
    give_up 'a database can be made for the check' "$answer"
exists=true
ask "$catalogs" || give_up "the database $name can be used" "$answer"
before=$answer

ask 'CREATE EXTENSION sync_outbox' || give_up 'CREATE EXTENSION' "$answer
The server could not load the extension: its files are missing, or are not those of one version. Install it again."
ok 'CREATE EXTENSION'

check "library and SQL are both of version $version" "$version $version t" \
    "SELECT concat_ws(' ', library, extension, matches) FROM sync_outbox_version()"

ask "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'sync_outbox%')"
if [[ $answer == t ]]; then
    ok 'the library is preloaded: a background worker sends'
else
    echo "note  no background worker of the extension runs: changes are sent by flush and drain alone
      (shared_preload_libraries = 'sync_outbox' and a restart, or sync_outbox.enabled)"
fi

# ----------------------------------------------------------------------------------------------------------- its work

# A target of its own: that of the server's settings gets nothing. Nobody listens at port 1.
ask "SELECT sync_outbox_target_set('installcheck', '{\"base_url\": \"http://127.0.0.1:1\"}');
     SELECT sync_outbox_set_token('installcheck', 'installcheck');
     CREATE TABLE installcheck (id int PRIMARY KEY, note text);
     SELECT sync_outbox_attach('installcheck', target => 'installcheck',
                               operations => '{INSERT,UPDATE,DELETE,TRUNCATE}')" ||
    give_up 'a table is attached' "$answer"
ok 'a table is attached'

captured() {
    check "$1 is captured" "$1" "$2; SELECT op FROM sync_outbox ORDER BY id DESC LIMIT 1"
}
captured INSERT "INSERT INTO installcheck VALUES (1, 'one')"
captured UPDATE "UPDATE installcheck SET note = 'changed'"
captured DELETE 'DELETE FROM installcheck'
captured TRUNCATE 'TRUNCATE installcheck'
check 'a change that is rolled back leaves nothing' 4 \
    "BEGIN; INSERT INTO installcheck VALUES (2, 'two'); ROLLBACK; SELECT count(*) FROM sync_outbox"

check 'a flush to a port at which nobody listens answers offline' offline \
    "SELECT sync_outbox_flush(target => 'installcheck')->>'error'"
check 'and loses nothing' 'INSERT UPDATE DELETE TRUNCATE' "SELECT string_agg(op, ' ' ORDER BY id) FROM sync_outbox"
# The worker may try them again at once.
check 'what failed can be requeued' 't 4' "SELECT concat_ws(' ',
    sync_outbox_requeue(reason => 'installcheck', target => 'installcheck') BETWEEN 1 AND 4, (SELECT count(*) FROM sync_outbox))"

check 'a detached table is not captured any more' 4 "DO \$\$ BEGIN PERFORM sync_outbox_detach('installcheck'); END \$\$;
    INSERT INTO installcheck VALUES (3, 'three'); SELECT count(*) FROM sync_outbox"

# ------------------------------------------------------------------------------------------------------------ its end

check 'what waits can be given up' 4 "SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox), 'installcheck')"
# Its token goes with it, which is a file in the server's data directory.
check 'the target can be dropped' 0 "DO \$\$ BEGIN PERFORM sync_outbox_target_drop('installcheck'); END \$\$;
    SELECT count(*) FROM sync_outbox_target WHERE name = 'installcheck'"
check 'DROP EXTENSION leaves nothing' "$before" "DROP TABLE installcheck; DROP EXTENSION sync_outbox; $catalogs"
finish
