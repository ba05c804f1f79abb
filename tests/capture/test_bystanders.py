"""What an application sees of capture: nothing. And the ids, which are drawn without the session's knowing."""

import contextlib
import threading

import psycopg
import pytest
from psycopg import errors

from support.wait import wait_for

TABLES = """
    CREATE TABLE {table} (id serial PRIMARY KEY, v text, qty int);
    CREATE FUNCTION {table}_found(wanted int) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE n bigint; seen text; BEGIN
        UPDATE {table} SET qty = 2 WHERE id = wanted; GET DIAGNOSTICS n = ROW_COUNT; seen := FOUND || ' ' || n;
        DELETE FROM {table} WHERE id = -1; GET DIAGNOSTICS n = ROW_COUNT; RETURN seen || ', ' || FOUND || ' ' || n;
    END $$;
"""
# What is looked at, after each of the statements.
STATEMENTS = [
    "INSERT INTO {table} (v) VALUES ('a'), ('b')", "INSERT INTO {table} (v) VALUES ('c') RETURNING id, v",
    "INSERT INTO {table} VALUES (1, 'again') ON CONFLICT (id) DO UPDATE SET v = excluded.v",
    "INSERT INTO {table} VALUES (1) ON CONFLICT DO NOTHING", "UPDATE {table} SET qty = 1 WHERE id < 3",
    "UPDATE {table} SET qty = qty", "DELETE FROM {table} WHERE id = 2", "SELECT {table}_found(1)", "SELECT {table}_found(-7)",
    "MERGE INTO {table} USING (VALUES (1), (50)) AS w (n) ON id = n WHEN MATCHED THEN UPDATE SET v = 'm' "
    "WHEN NOT MATCHED THEN INSERT (v) VALUES ('n')",
    "SAVEPOINT s", "INSERT INTO {table} (v) VALUES ('undone')", "ROLLBACK TO s", "INSERT INTO {table} (v) VALUES (NULL)",
    # Not before ROLLBACK, at which the client drops what is prepared.
    "PREPARE {table}_write AS INSERT INTO {table} (v) VALUES ('prepared') RETURNING qty", "EXECUTE {table}_write", "EXECUTE {table}_write", "TRUNCATE {table}", "INSERT INTO {table} (v) VALUES (E'\\\\x')",
]
LOOKS = {
    "lastval()": "SELECT lastval()",
    "currval()": "SELECT currval(pg_get_serial_sequence('{table}', 'id'))",
    "random()": "SELECT random()",
    "settings": "SELECT name, setting FROM pg_settings WHERE name !~ '^sync_outbox' ORDER BY 1",
    "who and where": "SELECT current_user, session_user, current_schemas(true), pg_trigger_depth()",
    "prepared statements": "SELECT replace(name, '{table}', ''), generic_plans, custom_plans FROM pg_prepared_statements WHERE name !~ '^_pg3'",
    "cursors": "SELECT count(*) FROM pg_cursors",
    "temporary objects": "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
    "channels": "SELECT count(*) FROM pg_listening_channels()",
    "advisory locks": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "the rows": "SELECT *, xmax::text = '0' AS untouched, ctid FROM {table} ORDER BY id",
    "the sequence": "SELECT last_value, log_cnt, is_called FROM {table}_id_seq",
    "the sequence's blocks": "SELECT pg_stat_get_xact_blocks_fetched('{table}_id_seq'::regclass)",
    "transaction": "SELECT pg_current_xact_id_if_assigned() IS NULL",
}


@pytest.fixture
def db(db, append):
    return append(db)


def seen(session, table):
    """Everything that an application can look at, while it writes to a table."""
    notices, found = [], []
    session.add_notice_handler(lambda notice: notices.append((notice.severity, notice.message_primary)))
    session.execute("BEGIN; SELECT setseed(0.5)")
    for statement in STATEMENTS:
        cursor = session.execute(statement.format(table=table))
        rows = cursor.fetchall() if cursor.description else None
        found.append((statement, cursor.statusmessage, cursor.rowcount, rows))
        if "undone" not in statement:
            found += [(name, session.execute(look.format(table=table)).fetchall()) for name, look in LOOKS.items()]
    session.execute("COMMIT")
    found.append(session.execute("SELECT lastval()").fetchall())
    found.append(session.execute(f"DEALLOCATE {table}_write").statusmessage)
    return found, notices


@pytest.mark.parametrize("superuser", [True, False])
def test_defect_04_an_application_sees_no_difference(db, superuser):
    for table in ("plain", "taken"):
        db.run(TABLES.format(table=table))
    db.attach("taken", operations=["INSERT", "UPDATE", "DELETE", "TRUNCATE"], include_old=True)
    role = "postgres" if superuser else db.role("clerk")
    db.run(f"GRANT ALL ON plain, taken TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}" if superuser else
           f"GRANT ALL ON plain, taken TO {role}; GRANT ALL ON plain_id_seq, taken_id_seq TO {role}")
    (plain, said), (taken, said_too) = seen(db.session(role), "plain"), seen(db.session(role), "taken")

    for without, within in zip(plain, taken, strict=True):
        assert without == within
    assert said == said_too
    assert db.value("SELECT count(*) FROM sync_outbox") >= 15


def test_defect_04_a_session_without_a_sequence_stays_without_one(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t")
    session = db.session()
    session.execute("INSERT INTO t VALUES (1)")
    for look in ("SELECT lastval()", "SELECT currval('sync_outbox_id_seq')"):
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            session.execute(look)
    assert len(db.outbox()) == 1


# The ids

@pytest.fixture
def taken(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    return db


def ids(db):
    return [change.id for change in db.outbox()]


def test_ids_are_those_of_the_sequence(taken):
    """Whoever else draws from it, sets it or restarts it finds it as nextval() leaves it."""
    taken.run("INSERT INTO t SELECT generate_series(1, 40)")
    assert ids(taken) == list(range(1, 41))
    assert taken.row("SELECT last_value, is_called FROM sync_outbox_id_seq") == (40, True)
    assert taken.value("SELECT nextval('sync_outbox_id_seq')") == 41
    assert taken.value("SELECT last_value FROM pg_sequences WHERE sequencename = 'sync_outbox_id_seq'") == 41
    taken.run("INSERT INTO t VALUES (41); SELECT setval('sync_outbox_id_seq', 100); INSERT INTO t VALUES (42)")
    taken.run("SELECT setval('sync_outbox_id_seq', 200, false); INSERT INTO t VALUES (43)")
    taken.run("ALTER SEQUENCE sync_outbox_id_seq INCREMENT 5; INSERT INTO t VALUES (44), (45)")
    assert ids(taken)[40:] == [42, 101, 200, 205, 210]
    taken.run("ALTER SEQUENCE sync_outbox_id_seq INCREMENT 1; TRUNCATE sync_outbox RESTART IDENTITY; UPDATE t SET v = 1")
    assert ids(taken) == list(range(1, 46))


def test_log_cnt_is_as_nextval_leaves_it(taken):
    """The same WAL, one record for 33 numbers: beside a sequence that is drawn from by nextval()."""
    taken.run("CREATE SEQUENCE other")
    state = "SELECT last_value, log_cnt, is_called FROM {}"
    for n in range(1, 80):
        taken.run("INSERT INTO t VALUES (%s)", [n])
        taken.run("SELECT nextval('other')")
        assert taken.row(state.format("sync_outbox_id_seq")) == taken.row(state.format("other")), n
        if n in (7, 50):
            taken.run("CHECKPOINT")


def test_a_sequence_that_has_ended_fails_the_writer(taken):
    taken.run("ALTER SEQUENCE sync_outbox_id_seq MAXVALUE 3; INSERT INTO t VALUES (1), (2), (3)")
    with pytest.raises(errors.SequenceGeneratorLimitExceeded) as refused:
        taken.run("INSERT INTO t VALUES (4)")
    assert "NO MAXVALUE" in refused.value.diag.message_hint
    taken.run("ALTER SEQUENCE sync_outbox_id_seq NO MAXVALUE; INSERT INTO t VALUES (4)")
    assert ids(taken) == [1, 2, 3, 4]


def test_ids_in_a_subtransaction_that_is_rolled_back(taken):
    with taken.conn.transaction():
        with contextlib.suppress(errors.UniqueViolation), taken.conn.transaction():
            taken.run("INSERT INTO t VALUES (1)")
            taken.run("INSERT INTO t VALUES (1)")
        taken.run("INSERT INTO t VALUES (2)")
    assert len(ids(taken)) == 1


@pytest.mark.parametrize("writers", [6])
def test_no_id_is_drawn_twice(taken, writers):
    """Writers side by side, and one who calls nextval() himself."""
    drawn, failures = [], []

    def work(n):
        try:
            with taken.server.connect(taken.name) as session:
                for i in range(150):
                    session.execute("INSERT INTO t SELECT * FROM generate_series(%s::int, %s::int)", [n * 10_000 + 7 * i, n * 10_000 + 7 * i + 6])
        except psycopg.Error as error:
            failures.append(error)

    def draw():
        with taken.server.connect(taken.name) as session:
            drawn.extend(session.execute("SELECT nextval('sync_outbox_id_seq')").fetchone()[0] for _ in range(300))
    threads = [threading.Thread(target=work, args=[n]) for n in range(writers)] + [threading.Thread(target=draw)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    everyone = ids(taken) + drawn
    assert len(everyone) == len(set(everyone)) == writers * 150 * 7 + 300
    assert max(everyone) == len(everyone)
    # Each writer's rows have ids in the order of its statements.
    rows = taken.rows("SELECT (pk ->> 'id')::int AS key FROM sync_outbox ORDER BY (pk ->> 'id')::int / 10000, id")
    assert [key for (key,) in rows] == sorted(key for (key,) in rows)


@pytest.mark.parametrize("settings", [{}, {"wal_level": "minimal", "max_wal_senders": "0"}], ids=["replica", "minimal"])
def test_a_crash_gives_no_id_again(new_server, settings):
    server = new_server(settings=settings)
    db = server.create_database()
    db.run("CREATE EXTENSION sync_outbox; CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    highest, row = 0, 0
    for crash in range(6):
        for _ in range(1 + 11 * crash):
            row += 1
            db.run("INSERT INTO t VALUES (%s)", [row])
            if row % 9 == 0:
                db.run("CHECKPOINT")
        found = ids(db)
        assert found[0] > highest and len(set(found)) == len(found)
        highest = found[-1]
        db.run("TRUNCATE sync_outbox")  # delivered
        db.close()
        server.restart("immediate")
        db.sessions, db.conn = [], None
        db.conn = db.session()
    db.run("INSERT INTO t VALUES (0)")
    assert highest < ids(db)[0] <= highest + 33


def test_a_standby_and_a_promotion_go_on_behind_the_last_id(new_server, run):
    """The sequence is replicated as nextval() replicates it."""
    server = new_server()
    db = server.create_database()
    db.run("CREATE EXTENSION sync_outbox; CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    db.run("INSERT INTO t SELECT generate_series(1, 5)")
    data = run.directory("copy_of_ids")
    run.call("pg_basebackup", "-h", server.sockets, "-U", "postgres", "-D", data, "-R", "-c", "fast")
    data.chmod(0o700)
    standby = new_server(data=data)
    db.run("INSERT INTO t SELECT generate_series(6, 50)")
    lsn = db.value("SELECT pg_current_wal_flush_lsn()")
    wait_for(lambda: standby.value(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"), what="the standby has it")
    assert standby.value("SELECT last_value FROM sync_outbox_id_seq", db.name) >= 50
    server.stop("immediate")
    standby.value("SELECT pg_promote()")
    with standby.connect(db.name) as session:
        session.execute("INSERT INTO t VALUES (51)")
        assert session.execute("SELECT max(id) FROM sync_outbox").fetchone()[0] > 50
