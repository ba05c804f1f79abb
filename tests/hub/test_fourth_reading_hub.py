"""A hostile reader's attempts at the hub: what breaks."""

import json
import pathlib
import threading
import time
import uuid

import psycopg
import pytest
from psycopg import errors

from support.wait import wait_for
from test_apply import Hub, change, hub, insert, keys, update  # noqa: F401

RAW = "$serde_json::private::RawValue"


def raw_bomb(levels, nest=120):
    """A small JSON text whose strings hold JSON again: a parser that follows them has a recursion limit for each level only."""
    text = "1"
    for _ in range(levels):
        text = text.replace("\\", "\\u005c").replace('"', "\\u0022")
        text = "[" * nest + '{"' + RAW + '":"' + text + '"}' + "]" * nest
    return text


def hwm(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024


def own_hub(new_server, **options):
    server = new_server(**options)
    database = server.create_database()
    database.run("CREATE EXTENSION sync_outbox")
    return Hub(database)


@pytest.mark.parametrize("table", ["sales", "nobody_accepted_this"])
def test_a_small_body_does_not_overflow_the_stack(new_server, table):
    """400 kB of nested strings in pk: SIGSEGV, and the whole server restarts."""
    hub = own_hub(new_server)
    good, bad = insert(id=1), change("DELETE", {"id": "BOMB"}, None, table)
    body = json.dumps({"changes": [good, bad]}).replace('"BOMB"', raw_bomb(400))
    print("bytes", len(body))
    answer = hub.value("SELECT sync_outbox_apply_text(%s)", [body])
    assert answer["acked"] == keys(good)


def big(kind, size):
    n = size // 2 - 200
    if kind == "pk elements":
        body = json.dumps({"changes": [change("DELETE", {"id": "BIG"})]})
        return body.replace('"BIG"', "[" + "0," * n + "0]")
    if kind == "changes":
        return '{"changes": [' + "0," * n + "0]}"
    members = ",".join(f'"{i:x}":0' for i in range(size // 11))
    body = json.dumps({"changes": [change("UPDATE", {"id": 1}, "BIG")]})
    return body.replace('"BIG"', "{" + members + "}")


@pytest.mark.parametrize("mib", [32, 63])
@pytest.mark.parametrize("kind", ["pk elements", "changes", "data members"])
def test_the_memory_of_a_body_is_bounded(hub, kind, mib):
    """What is above is Rust's memory, whose lack ends the server; PostgreSQL's own reads a value into twenty times its size."""
    body = big(kind, mib << 20)
    with hub.session() as session:
        pid = session.info.backend_pid
        began = time.monotonic()
        try:
            session.execute("SELECT length(sync_outbox_apply_text(%s)::text)", [body])
        except psycopg.Error as error:
            print(str(error)[:200])
        most = hwm(pid)
        print(kind, mib, "MiB body ->", most, "MiB,", round(time.monotonic() - began, 1), "s")
    assert most < (25 if kind == "pk elements" else 10) * mib + 100


# Escalation

def mallory(hub, admin=True):
    role = hub.db.role("mallory")
    hub.run(f"CREATE SCHEMA evil AUTHORIZATION {role}")
    session = hub.db.session(user=role)
    session.execute("CREATE TABLE evil.bait (id int PRIMARY KEY, a int); CREATE TABLE evil.who (who text)")
    hub.run("SELECT sync_outbox_accept('evil.bait')")
    session.execute(f"""CREATE FUNCTION evil.win() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$ BEGIN
        INSERT INTO evil.who VALUES (current_user);
        BEGIN EXECUTE 'ALTER ROLE {role} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
        RETURN NEW; END $$""")
    return role, session


def is_super(hub, role):
    return hub.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [role])


WIN = ("CREATE TRIGGER win BEFORE INSERT ON evil.sup FOR EACH ROW EXECUTE FUNCTION evil.win();"
       "ALTER TABLE evil.sup ENABLE ALWAYS TRIGGER win")


def test_a_table_that_is_replaced_during_the_call_is_not_written_as_the_old_ones_owner(hub):
    """A schema's owner may drop what others have in it: in public that is the database's owner."""
    role, session = mallory(hub)
    hub.run("CREATE TABLE evil.sup (id int PRIMARY KEY, a int)")  # a superuser's
    hub.run("SELECT sync_outbox_accept('evil.sup')")
    session.execute(f"""CREATE FUNCTION evil.swap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE 'DROP TABLE evil.sup; CREATE TABLE evil.sup (id int PRIMARY KEY, a int); {WIN}';
        RETURN NEW; END $$;
        CREATE TRIGGER swap BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.swap();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER swap""")
    sup = [change("INSERT", {"id": n}, {"id": n}, "sup", "evil") for n in (1, 2)]
    bait = change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil")
    print(hub.apply(sup[0], bait, sup[1]), hub.rows("TABLE evil.who"))
    assert not is_super(hub, role)
    assert "postgres" not in [row.who for row in hub.rows("TABLE evil.who")]


def test_a_table_that_gets_another_owner_while_apply_waits(hub):
    role, session = mallory(hub)
    hub.run("CREATE TABLE evil.sup (id int PRIMARY KEY, a int)")
    hub.run("SELECT sync_outbox_accept('evil.sup')")
    giving = hub.session(autocommit=False)
    giving.execute(f"ALTER TABLE evil.sup OWNER TO {role}")
    answers = []
    with hub.session() as applying:
        thread = threading.Thread(target=lambda: answers.append(
            hub.apply(change("INSERT", {"id": 1}, {"id": 1}, "sup", "evil"), session=applying)))
        thread.start()
        time.sleep(0.5)
        giving.execute(f"SET LOCAL ROLE {role}; {WIN}")
        giving.commit()
        thread.join()
    print(answers, hub.rows("TABLE evil.who"))
    assert not is_super(hub, role)
    assert "postgres" not in [row.who for row in hub.rows("TABLE evil.who")]


# One table's code against everybody else

POISON = {
    "set transaction": "EXECUTE 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE'",
    "vacuum": "EXECUTE 'VACUUM evil.bait'",
    "read only": "PERFORM set_config('transaction_read_only', 'on', true); UPDATE evil.bait SET a = 1",
    "bad deadlock": "EXECUTE 'PREPARE TRANSACTION ''x'''",
    "large objects": "PERFORM lo_open(1, 1)",
    "commit": "COMMIT",
    "raise": "RAISE SQLSTATE '40001'",
    "reraise": "BEGIN RAISE SQLSTATE '40001'; EXCEPTION WHEN OTHERS THEN RAISE; END",
    "sql": "PERFORM evil.inner()",
    "savepoint": "EXECUTE 'SAVEPOINT a'",
    "cursor": "EXECUTE 'DECLARE x CURSOR WITH HOLD FOR SELECT 1'",
    "advisory": "PERFORM pg_advisory_xact_lock(n) FROM generate_series(1, 100000) n",
    "terminate": "PERFORM pg_terminate_backend(pg_backend_pid())",
    "cancel": "PERFORM pg_cancel_backend(pg_backend_pid())",
    "nowait": "PERFORM 1; EXECUTE 'LOCK TABLE evil.bait IN ACCESS EXCLUSIVE MODE NOWAIT'",
    "own lock timeout": "PERFORM set_config('lock_timeout', '1', false); PERFORM pg_sleep(0.1)",
}


@pytest.mark.parametrize("what", POISON)
def test_code_that_always_fails_is_the_error_of_its_change(hub, what):
    role, session = mallory(hub)
    session.execute(f"""CREATE FUNCTION evil.inner() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '57014'; END $$;
        CREATE FUNCTION evil.poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {POISON[what]}; RETURN NEW; END $$;
        CREATE TRIGGER poison BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.poison();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER poison""")
    good, bait = insert(id=1), change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil")
    answer = hub.apply(good, bait)
    print(answer)
    assert good["dedup_key"] in answer["acked"]


def test_code_that_catches_every_cancel_does_not_keep_the_call(hub):
    """apply_statement_timeout is raised once; owner's code that swallows it in a loop goes on for as long as it likes."""
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.forever() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        FOR i IN 1 .. 40 LOOP BEGIN PERFORM pg_sleep(0.2); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN NEW; END $$;
        CREATE TRIGGER forever BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.forever();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER forever""")
    hub.db.server.set(sync_outbox__apply_statement_timeout="500ms")
    before, bait, after = insert(id=1), change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), insert(id=2)
    with hub.session() as applying:
        began = time.monotonic()
        answer = hub.apply(before, bait, after, session=applying)
        assert time.monotonic() - began < 3
        # What is under way is not lost by it, and the change does not come again for ever.
        assert answer["acked"] == keys(before) and [e["dedup_key"] for e in answer["errors"]] == keys(bait)
        assert hub.rows("TABLE evil.bait") == [] and len(hub.content()) == 1
        assert applying.execute("SELECT 1 FROM pg_sleep(0.7)").fetchone() == (1,)  # nothing is left to go off


@pytest.mark.parametrize("depth", [1, 50])
def test_code_that_catches_every_cancel_in_many_blocks(hub, depth):
    """Each block has a handler that goes on with the next, and an expression calls it twice."""
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.again(depth int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
        LOOP BEGIN PERFORM pg_sleep(60), depth = 0 OR evil.again(depth - 1) AND evil.again(depth - 1);
        EXCEPTION WHEN query_canceled THEN
            BEGIN PERFORM evil.again(depth - 1) WHERE depth > 0; EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(60); END;
        END; END LOOP; END $$;""" f"""
        CREATE FUNCTION evil.forever() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        LOOP BEGIN PERFORM evil.again({depth}); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$;
        CREATE TRIGGER forever BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.forever();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER forever""")
    hub.db.server.set(sync_outbox__apply_statement_timeout="500ms")
    bait = change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil")
    with hub.session() as applying:
        began = time.monotonic()
        answer = hub.apply(bait, session=applying)
        assert time.monotonic() - began < 3
        assert [e["dedup_key"] for e in answer["errors"]] == keys(bait)


def test_code_that_tidies_up_after_a_cancel_is_not_to_blame(hub):
    """It hands the error on: the server was slow, and the whole body comes again."""
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(0.1); RAISE; END; RETURN NEW; END $$;
        CREATE TRIGGER tidy BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.tidy();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER tidy""")
    hub.db.server.set(sync_outbox__apply_statement_timeout="500ms")
    with hub.session() as applying:
        with pytest.raises(errors.QueryCanceled):
            hub.apply(insert(id=1), change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), session=applying)
    assert hub.content() == []


def test_the_callers_own_limit_is_not_caught(hub):
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.forever() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN NEW; END $$;
        CREATE TRIGGER forever BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.forever();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER forever""")
    with hub.session() as applying:
        applying.execute("SET statement_timeout = '500ms'")
        began = time.monotonic()
        with pytest.raises(errors.QueryCanceled):
            hub.apply(insert(id=1), change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), session=applying)
        assert time.monotonic() - began < 3
    assert hub.content() == []


def test_code_leaves_no_lock_in_the_session(hub):
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(n) FROM generate_series(1, 50) n; RETURN NEW; END $$;
        CREATE TRIGGER lock BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.lock();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER lock""")
    with hub.session() as applying:
        hub.apply(change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), session=applying)
        assert applying.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()").fetchone()[0] == 0


@pytest.mark.parametrize("code", ["PERFORM pg_advisory_unlock_all()", "PERFORM pg_advisory_unlock(7), pg_advisory_unlock(7)",
                                  "PERFORM pg_advisory_unlock_all(), pg_advisory_lock(7), pg_advisory_lock_shared(8)", "RAISE 'no'",
                                  "PERFORM pg_advisory_lock(n) FROM generate_series(1, 9) n; RAISE 'no'"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_own_locks_stay(hub, code, fails):
    role, session = mallory(hub)
    session.execute(f"""CREATE FUNCTION evil.lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {code}; RETURN NEW; END $$;
        CREATE TRIGGER lock BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.lock();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER lock""")
    held = "SELECT objid, mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY 1, 2"
    with hub.session(autocommit=False) as applying:
        applying.execute("SELECT pg_advisory_lock(7) a, pg_advisory_lock(7) b, pg_advisory_lock_shared(7), pg_advisory_lock(5)")
        applying.execute("SELECT pg_advisory_xact_lock(6)")
        before = applying.execute(held).fetchall()
        body = json.dumps({"changes": [change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil")]})
        applying.execute("SAVEPOINT s")
        try:
            applying.execute("SELECT sync_outbox_apply(%s::json)" + (", 1 / (random() * 0)" if fails else ""), [body])
        except errors.DivisionByZero:
            applying.execute("ROLLBACK TO SAVEPOINT s")
        assert applying.execute(held).fetchall() == before
        applying.rollback()
        assert [tuple(row) for row in applying.execute(held)] == [(5, "ExclusiveLock"), (7, "ExclusiveLock"), (7, "ShareLock")]
        assert applying.execute("SELECT pg_advisory_unlock(7) a, pg_advisory_unlock(7) b, pg_advisory_unlock(5)").fetchone() == (True,) * 3
        assert [tuple(row) for row in applying.execute(held)] == [(7, "ShareLock")]


@pytest.mark.parametrize("code", ["PERFORM pg_advisory_lock(n) FROM generate_series(1, 100000) n",
                                  "BEGIN PERFORM pg_advisory_lock(n) FROM generate_series(1, 100000) n; EXCEPTION WHEN division_by_zero THEN NULL; END"])
def test_locks_that_code_takes_until_there_is_no_room(hub, code):
    """Those of the session are not given back by a rollback: the next change would find no room, nor would anybody."""
    role, session = mallory(hub)
    session.execute(f"""CREATE FUNCTION evil.lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {code}; RETURN NEW; END $$;
        CREATE TRIGGER lock BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.lock();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER lock""")
    hub.run("CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY HASH (id)")
    for n in range(20):
        hub.run(f"CREATE TABLE parted_{n} PARTITION OF parted FOR VALUES WITH (MODULUS 20, REMAINDER {n})")
    hub.run("SELECT sync_outbox_accept('parted')")
    bait, good = change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), change("TRUNCATE", None, None, "parted")
    with hub.session() as applying:
        answer = hub.apply(insert(id=1), bait, good, session=applying)
        assert [e["dedup_key"] for e in answer["errors"]] == keys(bait) and good["dedup_key"] in answer["acked"]
        assert applying.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()[0] == 0


# Log and answer sizes

@pytest.mark.parametrize("member", ["dedup_key", "op", "schema"])
def test_a_bad_body_does_not_fill_the_log(hub, member):
    bad = change("DELETE", {"id": 1})
    bad[member] = "x" * (10 << 20)
    position = hub.db.server.log.position()
    try:
        hub.value("SELECT sync_outbox_apply_text(%s)", [json.dumps({"changes": [bad]})])
    except psycopg.Error as error:
        print(len(str(error)))
        assert len(error.diag.message_detail or "") < 10_000
    assert hub.db.server.log.position() - position < 1 << 20


# More of the same classes

@pytest.mark.parametrize("levels", [150, 200, 250, 300])
def test_how_small_a_body_overflows_the_stack(new_server, levels):
    hub = own_hub(new_server)
    bad = change("DELETE", {"id": "BOMB"}, None, "nobody")
    body = json.dumps({"changes": [bad]}).replace('"BOMB"', raw_bomb(levels))
    print("bytes", len(body))
    assert hub.value("SELECT sync_outbox_apply_text(%s)", [body])["errors"]


@pytest.mark.parametrize("mib", [4, 8, 12, 16, 20])
@pytest.mark.parametrize("kind", ["pk elements", "data members"])
def test_no_memory_for_a_body_is_an_error(new_server, kind, mib):
    """Under a limit of address space such a body ends the whole server: Rust aborts where it cannot allocate."""
    hub = own_hub(new_server, through=("prlimit", f"--as={640 << 20}"))
    bystander = hub.session()
    pid = bystander.execute("SELECT pg_backend_pid()").fetchone()[0]
    try:
        hub.value("SELECT sync_outbox_apply_text(%s)", [big(kind, mib << 20)])
    except psycopg.Error as error:
        print(error)
    assert bystander.execute("SELECT pg_backend_pid()").fetchone()[0] == pid


def test_a_partition_of_somebody_else_does_not_run_as_the_parents_owner(hub):
    role, session = mallory(hub)
    hub.run("CREATE TABLE sup (id int PRIMARY KEY, a int) PARTITION BY RANGE (id)")
    session.execute("CREATE TABLE evil.part (id int NOT NULL, a int);"
                    "CREATE TRIGGER win BEFORE INSERT ON evil.part FOR EACH ROW EXECUTE FUNCTION evil.win();"
                    "ALTER TABLE evil.part ENABLE ALWAYS TRIGGER win")
    hub.run("ALTER TABLE sup ATTACH PARTITION evil.part DEFAULT")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="another owner"):
        hub.run("SELECT sync_outbox_accept('sup')")
    hub.run("ALTER TABLE sup DETACH PARTITION evil.part; SELECT sync_outbox_accept('sup');"
            "ALTER TABLE sup ATTACH PARTITION evil.part DEFAULT")
    assert len(hub.apply(change("INSERT", {"id": 1}, {"id": 1}, "sup"))["errors"]) == 1
    assert hub.rows("TABLE evil.who") == [] and not is_super(hub, role)


@pytest.mark.parametrize("table", ["sales\u0000x", "sales\u0000"])
def test_a_nul_in_a_name_is_not_acknowledged(hub, table):
    bad = change("INSERT", {"id": 1}, {"id": 1, "qty": 1}, table)
    answer = hub.value("SELECT sync_outbox_apply_text(%s)", [json.dumps({"changes": [bad]})])
    print(answer, hub.content())
    assert answer["acked"] == [] or hub.content()


def test_a_long_name_is_not_another_table(hub):
    name = "t" * 63
    hub.table("id int PRIMARY KEY, qty int", name)
    bad, later = change("UPDATE", {"id": 1}, {"qty": 1}, name), change("INSERT", {"id": 1}, {"id": 1}, name + "x")
    answer = hub.apply(bad, later)
    print(answer)
    assert later["dedup_key"] not in answer["acked"]


@pytest.mark.parametrize("call", ["sync_outbox_configure(%s::json)", "sync_outbox_target_set('x', %s::json)"])
def test_a_configuration_does_not_overflow_the_stack(new_server, call):
    hub = own_hub(new_server)
    admin = hub.db.role("adm", "sync_outbox_admin")
    session = hub.db.session(user=admin)
    with pytest.raises(psycopg.Error) as raised:
        session.execute("SELECT " + call, ['{"webapp_base_url": ' + raw_bomb(400) + "}"])
    print(str(raised.value)[:200])
    assert raised.value.sqlstate and not hub.db.server.log.matches("terminated by signal")


def test_many_tables_nobody_accepted_do_not_take_long(hub):
    """Each name is looked up once; 30 s is what a body may take."""
    changes = [change("DELETE", {"id": 1}, None, f"t{n}") for n in range(100_000)]
    body = json.dumps({"changes": changes})
    with hub.session() as session:
        began = time.monotonic()
        try:
            session.execute("SELECT length(sync_outbox_apply_text(%s)::text)", [body])
        except psycopg.Error as error:
            print(error)
        print(len(body) >> 20, "MiB", round(time.monotonic() - began, 1), "s", hwm(session.info.backend_pid), "MiB")


def test_a_cancel_is_heeded_while_a_body_is_read(hub):
    """Parsing 63 MB: no interrupt is looked at."""
    with hub.session() as session:
        session.execute("SET statement_timeout = '1s'")
        began = time.monotonic()
        with pytest.raises(psycopg.Error) as raised:
            session.execute("SELECT length(sync_outbox_apply_text(%s)::text)", [big("pk elements", 63 << 20)])
        took = time.monotonic() - began
        print(took, raised.value)
    assert took < 4


# The call's memory for many good changes, and the door


@pytest.mark.parametrize("rows", [20_000, 80_000])
def test_many_good_changes(hub, rows):
    hub.db.server.set(sync_outbox__apply_statement_timeout="5min")
    body = json.dumps({"changes": [insert(id=n, qty=1) for n in range(rows)]})
    with hub.session() as session:
        began = time.monotonic()
        session.execute("SELECT length(sync_outbox_apply_text(%s)::text)", [body])
        print(rows, len(body) >> 20, "MiB", round(time.monotonic() - began, 1), "s", hwm(session.info.backend_pid), "MiB")


def test_two_bodies_with_the_same_key_under_a_lock_timeout(hub):
    """The same body from two sessions: both are acknowledged, applied once, and the later ack is not before the first commit."""
    one = insert(id=1, qty=1)
    holder = hub.session(autocommit=False)
    hub.apply(one, session=holder)
    answers = []
    with hub.session() as other:
        thread = threading.Thread(target=lambda: answers.append(hub.apply(one, session=other)))
        thread.start()
        time.sleep(0.3)
        assert answers == []
        holder.rollback()
        thread.join()
    assert answers[0]["acked"] == keys(one) and hub.content()[0][:2] == (1, 1)


def test_a_trigger_that_waits_once_uses_up_everybodys_time(hub):
    """Time that owner's code sleeps after it has waited for any lock counts as waiting: all others of the body get 1 ms."""
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        BEGIN PERFORM set_config('lock_timeout', '1', true); PERFORM pg_advisory_xact_lock(77); EXCEPTION WHEN OTHERS THEN NULL; END;
        PERFORM pg_sleep(1.5); RETURN NEW; END $$;
        CREATE TRIGGER wait BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.wait();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER wait""")
    session.execute("SELECT pg_advisory_lock(77)")
    hub.run("INSERT INTO sales VALUES (1, 0)")
    hub.db.server.set(sync_outbox__apply_lock_timeout="1s")
    holder = hub.session(autocommit=False)
    holder.execute("UPDATE sales SET note = 'x'")
    releasing = threading.Timer(1.8, holder.commit)
    releasing.start()
    bait, mine = change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), update(1, qty=1)
    with hub.session() as applying:
        answer = hub.apply(bait, mine, session=applying)
    print(answer)
    releasing.join()
    assert mine["dedup_key"] in answer["acked"]


def test_own_triggers_may_call_apply_again(hub):
    """Recursion: apply inside apply, by an owner who has the right."""
    role, session = mallory(hub)
    hub.run(f"GRANT EXECUTE ON FUNCTION sync_outbox_apply(json) TO {role}")
    inner = insert(id=5)
    session.execute(f"""CREATE FUNCTION evil.again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM public.sync_outbox_apply('{json.dumps({"changes": [inner]})}'); RETURN NEW; END $$;
        CREATE TRIGGER again BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.again();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER again""")
    bait, mine = change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), insert(id=6)
    hub.db.server.set(sync_outbox__apply_statement_timeout="1s")
    with hub.session() as applying:
        print(hub.apply(bait, mine, session=applying), hub.content())
        assert applying.execute("SELECT current_user, current_setting('session_replication_role')").fetchone() == ("postgres", "origin")
        applying.execute("SELECT pg_sleep(1.5)")


@pytest.mark.parametrize("wrapped", ["domain", "index", "rls", "rule"])
def test_a_swapped_table_through_other_code(hub, wrapped):
    """The swap does not need a trigger: any code of the bait's owner does."""
    role, session = mallory(hub)
    hub.run("CREATE TABLE evil.sup (id int PRIMARY KEY, a int)")
    hub.run("SELECT sync_outbox_accept('evil.sup')")
    session.execute(f"""CREATE FUNCTION evil.swap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
        EXECUTE 'DROP TABLE IF EXISTS evil.sup; CREATE TABLE evil.sup (id int PRIMARY KEY, a int); {WIN}'; RETURN $1; END $$""")
    session.execute({
        "domain": "CREATE DOMAIN evil.d AS int CHECK (evil.swap(VALUE) > 0); ALTER TABLE evil.bait ALTER a TYPE evil.d",
        "index": "CREATE INDEX ON evil.bait (evil.swap(a))",
        "rls": "ALTER TABLE evil.bait ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY p ON evil.bait WITH CHECK (evil.swap(a) > 0)",
        "rule": "CREATE RULE r AS ON INSERT TO evil.bait DO ALSO SELECT evil.swap(1); ALTER TABLE evil.bait ENABLE ALWAYS RULE r"}[wrapped])
    sup = [change("INSERT", {"id": n}, {"id": n}, "sup", "evil") for n in (1, 2)]
    bait = change("INSERT", {"id": 1}, {"id": 1, "a": 1}, "bait", "evil")
    print(hub.apply(sup[0], bait, sup[1]), hub.rows("TABLE evil.who"))
    assert not is_super(hub, role)


def test_a_database_owner_in_public(hub):
    """The realistic form: the database belongs to an ordinary role, and a superuser's table lies in public."""
    role = hub.db.role("app")
    hub.run(f"ALTER DATABASE {hub.db.name} OWNER TO {role}; CREATE TABLE ledger (id int PRIMARY KEY)")
    hub.run("SELECT sync_outbox_accept('ledger')")
    session = hub.db.session(user=role)
    session.execute(f"""CREATE TABLE bait (id int PRIMARY KEY);
        CREATE FUNCTION win() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'ALTER ROLE {role} SUPERUSER'; RETURN NEW; END $$;
        CREATE FUNCTION swap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE 'DROP TABLE public.ledger; CREATE TABLE public.ledger (id int PRIMARY KEY); CREATE TRIGGER win BEFORE INSERT ON public.ledger FOR EACH ROW EXECUTE FUNCTION public.win(); ALTER TABLE public.ledger ENABLE ALWAYS TRIGGER win';
        RETURN NEW; END $$;
        CREATE TRIGGER swap BEFORE INSERT ON bait FOR EACH ROW EXECUTE FUNCTION swap(); ALTER TABLE bait ENABLE ALWAYS TRIGGER swap""")
    hub.run("SELECT sync_outbox_accept('bait')")
    print(hub.apply(insert("ledger", id=1), insert("bait", id=1), insert("ledger", id=2)))
    assert not is_super(hub, role)


def test_sessions_that_end_in_the_middle_of_a_call_do_not_end_the_server(new_server):
    """Each is ended while it applies: what measures its waiting must not look at what a process gives back when it ends."""
    hub = own_hub(new_server, settings={"max_connections": 60})
    started = hub.value("SELECT pg_postmaster_start_time()::text || pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    hub.run("""CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION slow(); ALTER TABLE sales ENABLE ALWAYS TRIGGER slow""")
    for _ in range(5):
        def applies(number):
            with pytest.raises(psycopg.OperationalError):
                with hub.session() as session:
                    hub.apply(insert(id=number), session=session)
        threads = [threading.Thread(target=applies, args=[number]) for number in range(30)]
        for thread in threads:
            thread.start()
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_for(lambda: hub.value(sleeping) == 30, 30)
        hub.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        for thread in threads:
            thread.join(30)
    assert started == hub.value("SELECT pg_postmaster_start_time()::text || pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
