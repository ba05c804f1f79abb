"""A hostile reader's attempts at the hub and the push session, after the fourth."""

import json
import threading
import time

import pytest
from psycopg import errors

from support.queued import dead_beside_another_target, longest_wait_of_another_target, with_dead
from support.wait import wait_for
from support.hub_database import Hub, change, insert, keys, update
from support.bait import mallory


def test_a_look_that_takes_longer_than_a_step_comes_to_an_end(live, receiver):
    """Every `interval` everything is looked at: the look must not begin anew at each of its own steps."""
    with_dead(live, receiver, 90_000)
    live.server.set(sync_outbox__interval="1s")
    for n in range(3):
        time.sleep(2)
        began, sent = time.monotonic(), len(receiver.changes)
        live.run("INSERT INTO sales VALUES (%s)", [1_000_000 + n])
        wait_for(lambda: len(receiver.changes) > sent, 20)
        print(time.monotonic() - began)
        assert time.monotonic() - began < 3


def test_a_storm_of_prepared_transactions_does_not_keep_a_target_from_sending(live, receiver):
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.attach("sales")
    live.run("CREATE TABLE other (id int)")
    stop, count = threading.Event(), []

    def prepare(n):
        with live.session() as session:
            session.execute("SET synchronous_commit = off")
            while not stop.is_set():
                session.execute(f"BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'r5b{n}'")
                session.execute(f"COMMIT PREPARED 'r5b{n}'")
                count.append(1)
    threads = [threading.Thread(target=prepare, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(count) > 50, 10)
        began = time.monotonic()
        for n in range(5):
            sent = len(receiver.changes)
            live.run("INSERT INTO sales VALUES (%s)", [n])
            wait_for(lambda: len(receiver.changes) > sent, 20)
        print("sent after", time.monotonic() - began, len(count))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_flush_that_waits_for_given_up_threads_ends_in_time(sales, new_receiver):
    """Four cancelled flushes to a target that cannot be connected to, and then one to another target."""
    import socket
    good = new_receiver()
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    filler = [socket.socket() for _ in range(3)]
    for one in filler:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    sales.configure(webapp_base_url=f"http://127.0.0.1:{full.getsockname()[1]}", sync_upload_token="x")
    sales.run("SELECT sync_outbox_target_set('good', %s::json)", [json.dumps({"base_url": good.url})])
    sales.run("SELECT sync_outbox_set_token('x', 'good')")
    sales.run("CREATE TABLE mine (id int PRIMARY KEY)")
    sales.attach("mine", target="good")
    sales.run("INSERT INTO sales VALUES (1, 0); INSERT INTO mine VALUES (1)")
    with sales.session() as session:
        session.execute("SET statement_timeout = '100ms'")
        for _ in range(5):
            with pytest.raises(errors.QueryCanceled):
                session.execute("SELECT sync_outbox_flush()")
        session.execute("SET statement_timeout = 0")
        sales.server.set(sync_outbox__flush_timeout="1s")
        began = time.monotonic()
        print(session.execute("SELECT sync_outbox_flush(target => 'good')").fetchone())
        took = time.monotonic() - began
        print(took)
        assert took < 2


def trigger(session, code):
    session.execute(f"""CREATE FUNCTION evil.code() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {code}; RETURN NEW; END $$;
        CREATE TRIGGER code BEFORE INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION evil.code();
        ALTER TABLE evil.bait ENABLE ALWAYS TRIGGER code""")


def test_a_table_whose_code_deadlocks_each_time_does_not_keep_its_store_waiting(hub):
    role, session = mallory(hub)
    trigger(session, "PERFORM pg_advisory_xact_lock(1), pg_advisory_xact_lock(2)")
    stop = threading.Event()

    def accomplice():
        with hub.db.session(user=role, autocommit=False) as other:
            while not stop.is_set():
                other.execute("SELECT pg_advisory_xact_lock(2)")
                while not stop.is_set() and not other.execute("SELECT count(*) FROM pg_locks WHERE NOT granted AND objid = 2").fetchone()[0]:
                    time.sleep(0.02)
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
        time.sleep(0.3)
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


def refusing(*ids):
    def behaviour(request, wire):
        refused = [c["dedup_key"] for c in request.changes if c["pk"] and c["op"] == "INSERT"]
        wire.answer(200, {"acked": [k for k in request.keys if k not in refused],
                          "errors": [{"dedup_key": k, "error": "no"} for k in refused]})
    return behaviour


@pytest.mark.parametrize("how", ["rename", "another key"])
def test_the_order_of_a_row_whose_key_is_called_otherwise(sales, receiver, how):
    receiver.behaviour = refusing()
    sales.run("ALTER TABLE sales ADD code int UNIQUE; UPDATE sales SET code = id; ALTER TABLE sales ALTER code SET NOT NULL")
    sales.run("INSERT INTO sales (id, qty, code) VALUES (1, 0, 1)")
    print(sales.flush())
    if how == "rename":
        sales.run("ALTER TABLE sales RENAME id TO number")
        sales.run("UPDATE sales SET qty = 1")
    else:
        sales.attach("sales", key_columns=["code"])
        sales.run("UPDATE sales SET qty = 1")
    print(sales.flush())
    print([(c["op"], c["pk"]) for c in receiver.changes])
    assert "UPDATE" not in [c["op"] for c in receiver.changes]


@pytest.mark.parametrize("kind, one, same", [("float8", "0", "-0"), ("numeric", "1", "1.0")])
def test_the_order_of_equal_keys_that_look_otherwise(sales, receiver, kind, one, same):
    receiver.behaviour = refusing()
    sales.run(f"CREATE TABLE k (id {kind} PRIMARY KEY, v int)")
    sales.attach("k")
    sales.run(f"INSERT INTO k VALUES ('{one}', 0)")
    print(sales.flush())
    sales.run(f"UPDATE k SET id = '{same}'")
    sales.run("DELETE FROM k")
    print(sales.flush())
    print([(c["op"], c["pk"]) for c in receiver.changes])
    assert [c["op"] for c in receiver.changes] == ["INSERT"]


def test_dead_changes_with_large_values_do_not_hold_up_another_target(live, receiver, new_receiver):
    other = new_receiver()
    dead_beside_another_target(live, receiver, other, "(id int PRIMARY KEY, note text)",
                               "INSERT INTO sales SELECT n, '' FROM generate_series(1, 320) n",
                               "UPDATE sales SET note = repeat(id::text || ' \\ id ', 400000)")
    assert longest_wait_of_another_target(live, other, 4) < 0.3


def test_the_order_of_a_row_in_two_priorities_whose_key_is_called_otherwise(sales, receiver):
    """What a backfill puts into LOW is older than the change in NORMAL, whose key has another name by then."""
    sales.run("INSERT INTO sales VALUES (1, 0)")
    sales.flush()
    sales.run("SELECT sync_outbox_backfill('sales', priority => 'LOW')")
    sales.run("ALTER TABLE sales RENAME COLUMN id TO number; UPDATE sales SET qty = 1")
    before = len(receiver.changes)

    sales.flush()
    sales.flush()

    assert [(change["op"], change["pk"]) for change in receiver.changes[before:]] == [
        ("INSERT", {"id": 1}), ("UPDATE", {"number": 1})]
