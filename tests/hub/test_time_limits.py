"""A locked row or slow code costs its own change, and no call takes longer than its limits say."""

import json
import threading
import time

import psycopg
import pytest
from psycopg import errors

from support.bait import mallory
from support.hub_database import change, delete, insert, keys, own_hub, update
from support.large import big_body
from support.process import peak_memory, processor_time
from support.wait import wait_for

# Locks

@pytest.fixture
def locked(hub):
    """The hub, whose row 1 somebody holds on to."""
    hub.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 5) n")
    hub.holder = hub.session(autocommit=False)
    hub.holder.execute("UPDATE sales SET note = 'held' WHERE id = 1")
    return hub


def timed(hub, *changes, session=None):
    began = time.monotonic()
    answer = hub.apply(*changes, session=session)
    return answer, time.monotonic() - began


def test_defect_17_a_locked_row_costs_its_own_change_only(locked):
    locked.db.server.set(sync_outbox__apply_lock_timeout="700ms")
    held, later, moved = update(1, qty=1), update(1, qty=2), update(2, id=1)
    others = [update(2, qty=3), insert(id=9), delete(3)]
    with locked.session() as session:
        answer, took = timed(locked, held, later, *others, moved, session=session)
        assert answer == {"acked": keys(*others), "errors": [], "conflicts": []}
        assert 0.6 < took < 2
        locked.holder.commit()
        answer, took = timed(locked, held, later, *others, session=session)
        assert (answer["acked"], took < 0.5) == (keys(held, later, *others), True)
    assert locked.content()[0] == (1, 2, "held")


def test_defect_17_the_time_is_that_of_the_whole_body(locked):
    locked.db.server.set(sync_outbox__apply_lock_timeout="600ms")
    locked.holder.execute("UPDATE sales SET note = 'held'")
    changes = [update(n, qty=1) for n in range(1, 6)]
    with locked.session() as session:
        answer, took = timed(locked, *changes, free := insert(id=9), session=session)
    assert answer["acked"] == keys(free) and took < 1.5


def test_defect_17_work_is_not_waiting(hub):
    """A slow trigger does not use the time up that a lock may be waited for."""
    hub.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.pg_sleep(0.4);"
            " RETURN NEW; END $$;"
               "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION slow();"
               " ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    hub.run("INSERT INTO sales VALUES (1, 0)")
    holder = hub.session(autocommit=False)
    holder.execute("UPDATE sales SET note = 'held'")
    hub.db.server.set(sync_outbox__apply_lock_timeout="1s")
    changes = [insert(id=n) for n in (11, 12, 13)] + [update(1, qty=1)]
    with hub.session() as session:
        releasing = threading.Timer(1.6, holder.commit)
        releasing.start()
        assert hub.apply(*changes, session=session)["acked"] == keys(*changes)
        releasing.join()


def test_defect_17_the_callers_own_limits_win_if_they_are_less(locked):
    session = locked.session()
    session.execute("SET lock_timeout = '200ms'; SET statement_timeout = '30s'")
    answer, took = timed(locked, update(1, qty=1), good := update(2, qty=1), session=session)
    assert answer["acked"] == keys(good) and took < 1.5
    session.execute("SET lock_timeout = '30s'; SET statement_timeout = '400ms'")
    with pytest.raises(errors.QueryCanceled):
        locked.apply(update(1, qty=1), update(4, qty=1), session=session)
    assert locked.content()[3] == (4, 0, None)


def test_defect_17_a_locked_table_and_a_key_that_is_just_applied(hub):
    hub.table("id int PRIMARY KEY")
    hub.db.server.set(sync_outbox__apply_lock_timeout="300ms")
    with hub.session(autocommit=False) as holder, hub.session() as session:
        same = insert(id=1)
        hub.apply(same, session=holder)
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        answer, took = timed(hub, same, insert("t", id=1), insert("t", id=2), good := insert(id=2), session=session)
        assert answer == {"acked": keys(good), "errors": [], "conflicts": []} and took < 2


def test_defect_17_a_statement_has_an_end(hub):
    """Also where code of the table's owner catches the error. The caller's own limit is in force again afterwards."""
    hub.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN BEGIN PERFORM pg_catalog.pg_sleep(60);"
            "EXCEPTION WHEN query_canceled THEN IF NEW.qty = 1 THEN RAISE; END IF; END; RETURN NEW; END $$;"
            "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW WHEN (NEW.qty IS NOT NULL)"
            " EXECUTE FUNCTION slow();"
            "ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    hub.db.server.set(sync_outbox__apply_statement_timeout="500ms")
    session = hub.session()
    with pytest.raises(errors.QueryCanceled) as raised:  # handed on
        hub.apply(insert(id=1), insert(id=2, qty=1), session=session)
    assert "statement timeout" in raised.value.diag.message_primary
    assert hub.content() == []
    # Kept: what is applied by then is answered, and the rest left unmentioned, or that change would come again for
    # ever.
    caught = [insert(id=1), insert(id=2, qty=2)]
    answer, took = timed(hub, *caught, insert(id=4), session=session)
    assert answer == {"acked": keys(*caught), "errors": [], "conflicts": []} and took < 1.5
    assert [row[0] for row in hub.content()] == [1, 2]
    assert hub.apply(insert(id=5), session=session)["acked"]
    session.execute("SET statement_timeout = '1200ms'")
    body = json.dumps({"changes": [insert(id=3)]})
    with pytest.raises(errors.QueryCanceled):
        session.execute("SELECT sync_outbox_apply(%s::json), pg_sleep(60)", [body])
    session.execute("RESET statement_timeout")
    session.execute("SELECT sync_outbox_apply(%s::json), pg_sleep(1)", [body])  # ours ends with the call
    session.execute("DO $$ BEGIN PERFORM sync_outbox_apply('{\"changes\": 1}');"
                    " EXCEPTION WHEN invalid_parameter_value THEN PERFORM pg_sleep(1); END $$")


def test_a_locked_table_is_waited_for_once(hub):
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


def test_a_trigger_that_waits_once_uses_up_everybodys_time(hub):
    """Time that owner's code sleeps after it has waited for any lock counts as waiting: all others of the body get 1
    ms."""
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        BEGIN PERFORM set_config('lock_timeout', '1', true); PERFORM pg_advisory_xact_lock(77);
        EXCEPTION WHEN OTHERS THEN NULL; END;
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


# Code that catches the cancel

def test_code_that_catches_every_cancel_has_an_end(hub):
    """An endless loop that catches query_canceled: neither the limit of apply nor a cancel ends it."""
    hub.run("CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN LOOP BEGIN PERFORM"
            " pg_catalog.pg_sleep(60);"
            "EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$;"
            "CREATE TRIGGER endless BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION endless();"
            " ALTER TABLE sales ENABLE ALWAYS TRIGGER endless")
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
    pid = wait_for(lambda: hub.rows("SELECT pid FROM pg_stat_activity WHERE query LIKE '%%sync_outbox_apply(%%'"
                                    " AND pid <> pg_backend_pid()"))[0].pid
    try:
        for _ in range(3):
            ended.wait(1)
            hub.rows("SELECT pg_cancel_backend(%s)", [pid])
        assert ended.wait(1)
    finally:
        hub.rows("SELECT pg_terminate_backend(%s)", [pid])
        thread.join()


def test_code_that_catches_every_cancel_does_not_keep_the_call(hub):
    """apply_statement_timeout is raised once; owner's code that swallows it in a loop goes on for as long as it
    likes."""
    role, session = mallory(hub)
    session.execute("""CREATE FUNCTION evil.forever() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        FOR i IN 1 .. 40 LOOP BEGIN PERFORM pg_sleep(0.2); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;
        RETURN NEW; END $$;
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
            BEGIN PERFORM evil.again(depth - 1) WHERE depth > 0;
            EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(60); END;
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
        BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(0.1); RAISE; END; RETURN NEW;
        END $$;
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


# Reading the body

def test_a_cancel_is_heeded_while_a_body_is_read(hub):
    """Parsing 63 MB: no interrupt is looked at. The server has the body before the limit begins, and only
    its own time counts. All of the body takes it more than six seconds."""
    with hub.session() as session:
        session.execute("CREATE TEMPORARY TABLE bodies (body text)")
        session.execute("INSERT INTO bodies VALUES (%s)", [big_body("pk elements", 63 << 20)])
        session.execute("SET statement_timeout = '1s'")
        before = processor_time(session.info.backend_pid)
        with pytest.raises(errors.QueryCanceled):
            session.execute("SELECT length(sync_outbox_apply_text(body)::text) FROM bodies")
        assert processor_time(session.info.backend_pid) - before < 4


def test_many_tables_nobody_accepted_do_not_take_long(hub):
    """What a name costs does not grow with their number, and is little more than what a change costs anyway."""
    def cost(changes, tables):
        """The seconds and the MiB that a session takes for changes of so many tables."""
        body = json.dumps({"changes": [change("DELETE", {"id": n}, None, f"t{n % tables}") for n in range(changes)]})
        with hub.session() as session:
            hub.apply(session=session)
            pid = session.info.backend_pid
            time_before, memory_before = processor_time(pid), peak_memory(pid)
            answer = json.loads(session.execute("SELECT sync_outbox_apply_text(%s)::text", [body]).fetchone()[0])
            assert len(answer["errors"]) == changes
            return processor_time(pid) - time_before, peak_memory(pid) - memory_before
    few_time, _ = cost(4_000, tables=4_000)
    many_time, many_memory = cost(16_000, tables=16_000)
    one_time, one_memory = cost(16_000, tables=1)
    assert many_time < 8 * few_time  # 4 times the names
    assert many_time < 5 * one_time and many_memory < 5 * one_memory


# Sessions that end

def test_sessions_that_end_in_the_middle_of_a_call_do_not_end_the_server(new_server):
    """Each is ended while it applies: what measures its waiting must not look at what a process gives back when it
    ends."""
    hub = own_hub(new_server, settings={"max_connections": 60})
    started = hub.value("SELECT pg_postmaster_start_time()::text || pid FROM pg_stat_activity"
                        " WHERE backend_type = 'checkpointer'")
    hub.run("""CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW;
        END $$;
        CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION slow();
        ALTER TABLE sales ENABLE ALWAYS TRIGGER slow""")
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
    assert started == hub.value("SELECT pg_postmaster_start_time()::text || pid FROM pg_stat_activity"
                                " WHERE backend_type = 'checkpointer'")


def trigger(session, code):
    session.execute(f"""CREATE FUNCTION evil.code() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {code}; RETURN NEW;
        END $$;
        CREATE TRIGGER code BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.code();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER code""")


def test_a_table_whose_code_deadlocks_each_time_does_not_keep_its_store_waiting(hub):
    role, session = mallory(hub)
    trigger(session, "PERFORM pg_advisory_xact_lock(1), pg_advisory_xact_lock(2)")
    stop = threading.Event()
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND objid = 2"

    def accomplice():
        with hub.db.session(user=role, autocommit=False) as other:
            while not stop.is_set():
                other.execute("SELECT pg_advisory_xact_lock(2)")
                wait_for(lambda: stop.is_set() or other.execute(waits).fetchone()[0], 60)
                try:
                    if not stop.is_set():
                        other.execute("SELECT pg_advisory_xact_lock(1)")
                except errors.DeadlockDetected:
                    pass
                other.rollback()
    thread = threading.Thread(target=accomplice)
    thread.start()
    before, bait, after = insert(id=1), change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), insert(id=2)
    try:
        wait_for(lambda: hub.value("SELECT count(*) FROM pg_locks WHERE granted AND objid = 2"
                                   " AND locktype = 'advisory'"))
        for _ in range(3):
            with hub.session() as applying:
                answer = hub.apply(before, bait, after, session=applying)
                assert set(keys(before, after)) <= set(answer["acked"]) and answer["errors"] == []
    finally:
        stop.set()
        thread.join()


def test_a_table_whose_code_is_beyond_a_limit_each_time_does_not_keep_its_store_waiting(hub):
    hub.db.server.set(temp_file_limit="1MB")
    role, session = mallory(hub)
    trigger(session, "PERFORM count(*) FROM (SELECT n FROM generate_series(1, 1000000) n ORDER BY -n OFFSET 0) s")
    before, bait, after = insert(id=1), change("INSERT", {"id": 1}, {"id": 1}, "bait", "evil"), insert(id=2)
    with hub.session() as applying:
        answer = hub.apply(before, bait, after, session=applying)
    print(answer)
    assert answer["acked"] == keys(before, after)
