"""A hostile reader's attempts at the push session."""

import json
import time

import pytest

from support.wait import wait_for
from test_fourth_reading_hub import hwm, raw_bomb


def own(new_server, receiver, **options):
    server = new_server(preload=True, **options)
    database = server.create_database()
    database.run("CREATE EXTENSION sync_outbox")
    database.run("CREATE TABLE sales (id int PRIMARY KEY, qty int, note text)")
    database.attach("sales")
    return server, database


def test_an_answer_does_not_overflow_the_workers_stack(new_server, receiver):
    """Words that are JSON are read as a value: strings in it that hold JSON are followed without a limit."""
    server, db = own(new_server, receiver)

    def bomb(request, wire):
        body = json.dumps({"acked": [], "errors": [{"dedup_key": request.keys[0], "error": "BOMB"}]})
        wire.answer(200, body.replace('"BOMB"', raw_bomb(400)))
    receiver.behaviour = bomb
    position = server.log.position()
    db.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 1000) n")
    db.aim(receiver)
    receiver.wait_for_requests(2, 20)
    time.sleep(3)
    print(len(receiver.requests), [r.raw and len(r.raw) for r in receiver.requests[:5]])
    assert not server.log.matches("terminated by signal", position)


@pytest.mark.parametrize("rows", [1000, 20_000])
def test_the_memory_of_an_answer_is_bounded(sales, receiver, rows):
    sales.server.set(sync_outbox__batch_rows=rows, sync_outbox__batch_bytes="64MB")
    sales.run(f"INSERT INTO sales SELECT n, 0 FROM generate_series(1, {rows}) n")

    def large(request, wire):
        most = 64 * 1024 + 4096 * len(request.changes) - 100
        wire.answer(200, '{"acked": [' + "0," * (most // 2 - 20) + "0]}")
    receiver.behaviour = large
    with sales.session() as session:
        began = time.monotonic()
        print(session.execute("SELECT sync_outbox_flush()::text").fetchone()[0][:300])
        most = hwm(session.info.backend_pid)
    print(rows, "rows ->", most, "MiB", round(time.monotonic() - began, 1), "s", [len(r.changes) for r in receiver.requests])
    assert most < 300


def threads_and_files(pid):
    import os
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("how", ["hang", "drip", "connect"])
def test_cancelled_flushes_leave_no_threads(sales, receiver, how):
    import socket
    full = None
    if how == "hang":
        receiver.behaviour = receiver.hang
    elif how == "drip":
        def drip(request, wire):
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(1000):
                time.sleep(0.01)
                wire.send(b" ")
        receiver.behaviour = drip
    else:
        full = socket.socket()
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler = [socket.socket() for _ in range(3)]
        for one in filler:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        sales.configure(webapp_base_url=f"http://127.0.0.1:{full.getsockname()[1]}", sync_upload_token="x")
    sales.run("INSERT INTO sales VALUES (1, 0)")
    with sales.session() as session:
        session.execute("SET statement_timeout = '60ms'")
        pid = session.info.backend_pid
        for _ in range(60):
            try:
                session.execute("SELECT sync_outbox_flush()")
            except Exception:
                pass
        after = threads_and_files(pid)
        time.sleep(1)
        print(how, after, threads_and_files(pid))
        assert after[0] < 10 and after[1] < 60


def test_a_cancelled_flush_sends_nothing_later(sales, receiver, run, authority):
    """The HTTP thread still reads its certificates when the flush is cancelled, the target paused, and a newer change has gone."""
    import os
    import pathlib
    import tempfile
    where = pathlib.Path(tempfile.mkdtemp(dir=run.where))
    where.chmod(0o755)
    fifo = where / "ca"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    sales.run("INSERT INTO sales VALUES (1, 0)")
    sales.server.set(sync_outbox__ca_file=str(fifo))
    with sales.session() as session:
        session.execute("SET statement_timeout = '500ms'")
        try:
            print(session.execute("SELECT sync_outbox_flush()").fetchone())
        except Exception as error:
            print(error)
        assert receiver.requests == []
        sales.server.set(sync_outbox__ca_file=None)
        assert sales.flushed()["acked"] == 1
        sales.run("UPDATE sales SET qty = 1")
        assert sales.flushed()["acked"] == 1
        sales.run("SELECT sync_outbox_pause()")
        with open(fifo, "w") as ca:
            ca.write(authority.ca_file.read_text())
        time.sleep(1)
        print([(c["op"], c["data"]) for c in receiver.changes])
        assert len(receiver.requests) == 2


def test_pause_and_urls_in_a_storm(live, receiver, new_receiver):
    """URL, token, pause and batch size change all the time under steady load: nothing lost, order per key, no threads left."""
    import threading
    other = new_receiver()
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int)")
    live.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 20) n")
    live.attach("sales")
    arrived = []

    def take(request, wire):
        arrived.extend(request.changes)
        wire.answer(200, {"acked": request.keys})
    receiver.behaviour = other.behaviour = take
    stop = threading.Event()

    def write():
        session, n = live.session(), 0
        while not stop.is_set():
            n += 1
            session.execute("UPDATE sales SET qty = qty + 1 WHERE id = %s", [n % 20 + 1])
    thread = threading.Thread(target=write)
    thread.start()
    until, n = time.monotonic() + 12, 0
    while time.monotonic() < until:
        n += 1
        live.aim([receiver, other][n % 2])
        live.run("SELECT sync_outbox_pause()")
        live.run("SELECT sync_outbox_resume()")
        if n % 10 == 0:
            live.run("SELECT sync_outbox_flush()")
    stop.set()
    thread.join()
    wait_for(lambda: live.value("SELECT count(*) FROM sync_outbox") == 0, 20)
    last, wrong, seen = {}, 0, set()
    for change in arrived:
        if change["dedup_key"] not in seen:
            seen.add(change["dedup_key"])
            key, qty = change["pk"]["id"], change["data"]["qty"]
            wrong += qty != last.get(key, 0) + 1
            last[key] = qty
    pid = live.value("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE '%%sync_outbox%%'")
    print(n, "rounds", len(seen), "changes", len(arrived) - len(seen), "repeated", threads_and_files(pid))
    assert wrong == 0 and {k: v for k, v in live.rows("SELECT id, qty FROM sales WHERE qty > 0")} == last


def test_many_targets(live, receiver, new_receiver):
    """150 targets, of which half hang: one change each is sent at once."""
    good, bad = new_receiver(), new_receiver()
    bad.behaviour = bad.hang
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    for n in range(150):
        url = (bad if n % 2 else good).url
        live.run("SELECT sync_outbox_target_set(%s, %s::json)", [f"t{n}", json.dumps({"base_url": url})])
        live.run("SELECT sync_outbox_set_token(%s, %s)", ["x", f"t{n}"])
        live.run(f"CREATE TABLE s{n} (id int PRIMARY KEY)")
        live.attach(f"s{n}", target=f"t{n}")
    began = time.monotonic()
    for n in range(150):
        live.run(f"INSERT INTO s{n} VALUES (1)")
    wait_for(lambda: len(good.changes) == 75 and len(bad.requests) == 75, 20, lambda: f"{len(good.changes)} {len(bad.requests)}")
    print("all out after", time.monotonic() - began)
    began = time.monotonic()
    live.run("INSERT INTO s0 VALUES (2)")
    wait_for(lambda: len(good.changes) == 76, 10)
    print("one more after", time.monotonic() - began)


def test_dead_changes_of_one_target_do_not_hold_up_another(live, receiver, new_receiver):
    """300,000 changes of `default` wait for a person. Whatever is said of any target has the worker walk over them, in one step."""
    other = new_receiver()
    live.server.set(sync_outbox__interval="1h")
    live.aim(receiver)
    live.run("SELECT sync_outbox_target_set('other', %s::json)", [json.dumps({"base_url": other.url})])
    live.run("SELECT sync_outbox_set_token('x', 'other')")
    live.run("CREATE TABLE sales (id int PRIMARY KEY, qty int); CREATE TABLE mine (id int PRIMARY KEY)")
    live.attach("sales")
    live.attach("mine", target="other")
    live.run("SELECT sync_outbox_pause()")
    live.run("INSERT INTO sales SELECT n, 0 FROM generate_series(1, 300000) n")
    live.run("UPDATE sync_outbox SET status = 'DEAD' WHERE table_name = 'sales'")
    live.run("VACUUM sync_outbox")
    live.run("SELECT sync_outbox_resume()")
    time.sleep(8)
    took = {"alone": [], "after a call": []}
    n = 0
    for _ in range(5):
        for what in took:
            n += 1
            sent = len(other.requests)
            if what == "after a call":
                live.run("SELECT sync_outbox_resume('other')")
            began = time.monotonic()
            live.run("INSERT INTO mine VALUES (%s)", [n])
            wait_for(lambda: len(other.requests) > sent, 20)
            took[what].append(round(time.monotonic() - began, 3))
            time.sleep(3)
    print(took)
    assert max(took["alone"] + took["after a call"]) < 0.3


def test_an_imported_key_does_not_overflow_the_workers_stack(new_server, receiver):
    """What an application wrote into the scripts' outbox is stored with us: the worker dies of it again and again."""
    server, db = own(new_server, receiver)
    db.run("CREATE TABLE old (id bigserial PRIMARY KEY, schema_name text, table_name text, op text, pk jsonb, data jsonb, dedup_key text,"
           "txid bigint DEFAULT txid_current(), created_at timestamptz DEFAULT now())")
    db.run("INSERT INTO old (schema_name, table_name, op, pk, dedup_key) VALUES ('public', 'sales', 'DELETE', %s::jsonb, gen_random_uuid()::text)",
           ['{"id": ' + raw_bomb(260, nest=100) + "}"])
    position = server.log.position()
    receiver.behaviour = lambda request, wire: wire.answer(200, {"acked": [], "errors": [
        {"dedup_key": key, "error": "no"} for key in request.keys]})
    db.run("SELECT sync_outbox_import('old')")
    db.aim(receiver)
    receiver.wait_for_requests(1, 20)
    time.sleep(6)
    died = server.log.matches("terminated by signal", position)
    print(len(receiver.requests), died)
    assert not died
