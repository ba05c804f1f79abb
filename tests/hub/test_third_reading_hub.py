"""A hostile reader at the hub: what a store, or the owner of an accepted table, can still break."""

import json
import pathlib
import re
import threading
import time
import uuid

import psycopg
import pytest
from psycopg import errors

from support.wait import wait_for
from test_apply import Hub, change, delete, hub, insert, keys, truncate, update  # noqa: F401

MB = 1 << 20


# A body that exhausts memory ends the server

def many(kind, size):
    """A body of about `size` megabytes."""
    one = '{"schema":"public","table":"sales","dedup_key":"%s",' % uuid.uuid4()
    members = ",".join(f'"{n:05x}":0' for n in range(size * MB // 11))
    return {
        # Elements of two bytes, of which each takes sixteen.
        "elements": lambda: '{"changes":[' + "1," * (size * MB // 2 - 20) + "1]}",
        "members": lambda: '{"changes":[%s"op":"UPDATE","pk":{"id":1},"data":{%s}}]}' % (one, members),
        "key": lambda: '{"changes":[%s"op":"DELETE","pk":{%s}}]}' % (one, members),
        "changes": lambda: '{"changes":[' + ",".join(
            '{"schema":"","table":"","op":"TRUNCATE","dedup_key":"%032x"}' % n for n in range(size * MB // 90)) + "]}",
    }[kind]()


def small_server(new_server):
    """Under the limit of address space that the tests of defect 5 use."""
    server = new_server(through=("prlimit", f"--as={640 * MB}"))
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; CREATE TABLE sales (id int PRIMARY KEY, qty int);"
           "SELECT sync_outbox_accept('sales')")
    return db


def survives(db, body):
    bystander = db.session()
    try:
        with db.session() as session:
            session.execute("SELECT sync_outbox_apply_text(%s)", [body]).fetchone()
    except psycopg.OperationalError as error:
        assert error.sqlstate, f"the server went away: {error}"
    except psycopg.Error as error:
        print(error.sqlstate, str(error)[:100])
    bystander.execute("SELECT 1")


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", ["elements", "members", "key", "changes"])
def test_a_body_of_very_many_parts_is_an_error_and_no_crash(new_server, kind, size):
    """64 MB is the most that apply takes, 32 MiB the most that the example receiver does."""
    body = many(kind, size)
    assert 0.8 * size * MB < len(body) <= size * MB, len(body) / MB
    survives(small_server(new_server), body)


@pytest.mark.parametrize("megabytes", [60, 90, 130, 160, 200])
def test_an_error_of_the_owners_code_may_be_long(new_server, megabytes):
    """RAISE with a message of many megabytes, in a trigger of an accepted table."""
    db = small_server(new_server)
    db.run("CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '%', repeat('x', NEW.qty); END $$;"
           "CREATE TRIGGER loud BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION loud(); ALTER TABLE sales ENABLE ALWAYS TRIGGER loud")
    survives(db, json.dumps({"changes": [insert(id=1, qty=megabytes * MB)]}))


# Acked, and not applied

@pytest.mark.parametrize("op", ["INSERT", "DELETE", "TRUNCATE"])
@pytest.mark.parametrize("where", ["schema", "table"])
def test_a_name_with_a_nul_is_not_acked_without_being_applied(hub, op, where):  # noqa: F811
    hub.run("INSERT INTO sales VALUES (1, 0)")
    one = {"INSERT": insert(id=2, qty=1), "DELETE": delete(1), "TRUNCATE": truncate()}[op]
    one[where] += "\0x"
    before = hub.content()
    answer = hub.apply(one)
    assert answer["acked"] == [] or hub.content() != before, (answer, hub.content())


# The owner of an accepted table

def hostile(db, name):
    """A role, a function of it that tries to make it superuser, and its session."""
    role = db.role(name)
    db.run(f"CREATE SCHEMA {name} AUTHORIZATION {role}; GRANT USAGE ON SCHEMA {name} TO PUBLIC")
    session = db.session(user=role)
    session.execute(f"""CREATE TABLE {name}.who (who text); GRANT INSERT ON {name}.who TO PUBLIC;
        CREATE FUNCTION {name}.evil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO {name}.who VALUES (current_user);
            BEGIN EXECUTE 'ALTER ROLE {role} SUPERUSER'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            RETURN coalesce(NEW, OLD); END $$""")
    return role, session


def is_super(db, role):
    return db.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [role])


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_table_that_changes_its_owner_while_it_is_looked_up(hub, isolation):  # noqa: F811
    """A superuser gives an accepted table away; its new owner has prepared a trigger, which waits in the queue for the lock in front of
    apply. What apply knows of the owner is from before."""
    role, eve = hostile(hub.db, "eve")
    admin = hub.session(autocommit=False)
    admin.execute(f"ALTER TABLE sales OWNER TO {role}")
    outcome = []

    def plant():
        with hub.db.server.connect(hub.db.name, role, False) as session:
            session.execute("CREATE TRIGGER x BEFORE INSERT ON public.sales FOR EACH ROW EXECUTE FUNCTION eve.evil()")
            session.execute("ALTER TABLE public.sales ENABLE ALWAYS TRIGGER x")

    def apply():
        with hub.db.server.connect(hub.db.name) as session:
            session.execute(f"SET default_transaction_isolation = '{isolation}'")
            outcome.append(session.execute("SELECT sync_outbox_apply(%s::json)::text", [json.dumps({"changes": [insert(id=1)]})]).fetchone()[0])

    def waiting(n):
        return wait_for(lambda: hub.value("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'sales'::regclass") == n)

    threads = [threading.Thread(target=plant), threading.Thread(target=apply)]
    for n, thread in enumerate(threads):
        thread.start()
        waiting(n + 1)
    admin.commit()
    for thread in threads:
        thread.join()
    print(outcome)
    ran = {row.who for row in hub.rows("SELECT who FROM eve.who")}
    assert not is_super(hub.db, role) and ran <= {role}, ran


def test_a_partition_of_another_owner(hub):  # noqa: F811
    """The root is a superuser's and accepted, a leaf was given to somebody else."""
    role, eve = hostile(hub.db, "eve")
    hub.run("CREATE TABLE root (id int PRIMARY KEY, qty int) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF root DEFAULT;"
            f"SELECT sync_outbox_accept('root'); ALTER TABLE leaf OWNER TO {role}")
    eve.execute("CREATE TRIGGER x BEFORE INSERT ON public.leaf FOR EACH ROW EXECUTE FUNCTION eve.evil(); ALTER TABLE public.leaf ENABLE ALWAYS TRIGGER x")
    print(hub.apply(insert("root", id=1)))
    ran = {row.who for row in hub.rows("SELECT who FROM eve.who")}
    assert not is_super(hub.db, role) and ran <= {role}, ran


def test_code_that_catches_every_cancel_has_an_end(hub):  # noqa: F811
    """An endless loop that catches query_canceled: neither the limit of apply nor a cancel ends it."""
    hub.run("CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN LOOP BEGIN PERFORM pg_catalog.pg_sleep(60);"
            "EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$;"
            "CREATE TRIGGER endless BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION endless(); ALTER TABLE sales ENABLE ALWAYS TRIGGER endless")
    hub.db.server.set(sync_outbox__apply_statement_timeout="500ms")
    ended = threading.Event()

    def apply():
        with hub.db.server.connect(hub.db.name) as session:
            try:
                session.execute("SELECT sync_outbox_apply(%s::json)", [json.dumps({"changes": [insert(id=1)]})])
            except psycopg.Error:
                pass
        ended.set()
    thread = threading.Thread(target=apply)
    thread.start()
    pid = wait_for(lambda: hub.rows("SELECT pid FROM pg_stat_activity WHERE query LIKE '%%sync_outbox_apply(%%' AND pid <> pg_backend_pid()"))[0].pid
    try:
        for _ in range(3):
            ended.wait(1)
            hub.rows("SELECT pg_cancel_backend(%s)", [pid])
        assert ended.wait(1)
    finally:
        hub.rows("SELECT pg_terminate_backend(%s)", [pid])
        thread.join()


@pytest.mark.parametrize("code", ["EXECUTE 'VACUUM'", "EXECUTE 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE'",
                                  "PERFORM set_config('transaction_read_only', 'on', true); INSERT INTO note VALUES (1)"])
def test_an_error_of_transaction_state_in_a_trigger_is_its_changes_alone(hub, code):  # noqa: F811
    hub.run("CREATE TABLE note (id int);"
            f"CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $x$ BEGIN {code}; RETURN NEW; END $x$;"
            "CREATE TRIGGER odd BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION odd(); ALTER TABLE sales ENABLE ALWAYS TRIGGER odd")
    hub.table("id int PRIMARY KEY")
    good = insert("t", id=1)
    answer = hub.apply(insert(id=1), good)
    assert answer["acked"] == keys(good) and len(answer["errors"]) == 1


# What a body costs

def test_a_locked_table_is_waited_for_once(hub):  # noqa: F811
    """Every change of another key waits again, a millisecond at least."""
    hub.table("id int PRIMARY KEY")
    hub.db.server.set(sync_outbox__apply_lock_timeout="300ms")
    with hub.session(autocommit=False) as holder, hub.session() as session:
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        hub.apply(*[insert("t", id=n) for n in range(5000)], good := insert(id=1), session=session)
        took = time.monotonic() - began
    print("took", took)
    assert took < 1.5


def anonymous_memory(pid):
    return int(re.search(r"RssAnon:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) << 10


def test_a_wide_table_in_many_shapes_keeps_little_memory(hub):  # noqa: F811
    """UPDATEs carry the columns that have changed: each set of columns is another statement, whose plan is kept."""
    columns = [f"c{n}" for n in range(300)]
    hub.table("id int PRIMARY KEY, " + ", ".join(f"{c} text" for c in columns))
    hub.acks(insert("t", id=1))
    with hub.session() as session:
        hub.apply(update(1, "t", **{"c0": "x"}), session=session)
        pid = session.info.backend_pid
        before = anonymous_memory(pid)
        for n in range(300):
            session.execute("SELECT sync_outbox_apply(%s::json)", [json.dumps({"changes": [update(1, "t", **{c: "x" for i, c in enumerate(columns) if i != n})]})])
        kept = anonymous_memory(pid) - before
    print("kept MB", kept / MB)
    assert kept < 64 * MB


def test_a_bad_body_is_not_told_at_length(hub):  # noqa: F811
    """What is wrong is told with all that was sent: to the log, to the sender, through the receiver."""
    body = json.dumps({"changes": [insert(id=1) | {"dedup_key": "x" * (4 * MB)}]})
    with pytest.raises(errors.InvalidParameterValue) as refused:
        hub.run("SELECT sync_outbox_apply_text(%s)", [body])
    assert len(refused.value.diag.message_detail) < 2000
