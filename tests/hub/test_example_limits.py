"""What strangers, slow senders and large bodies cost the example receiver, and what it passes on of them."""

import json
import os
import re
import resource
import socket
import threading
import time

import pytest

from support.example_receiver import HEAD, PATH, body, insert, raw
from support.large import nested_json
from support.process import MB, peak_memory, processor_time
from support.wait import wait_for


def answered(connection):
    """Everything that comes back until the other side closes."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received.decode()


def test_defect_21_nobody_forges_a_line_of_the_log(example):
    forged = "x\n2026-01-01 00:00:00,000 10.0.0.1: 999 acked, 0 errors, 0 conflicts\x1b[2J\r\x9b\u2028"
    for change in (insert(1) | {"dedup_key": forged}, insert(1) | {"op": forged}, insert(1) | {"schema": 7, forged: 1}):
        assert example.post(body(change))[0] == 400
    with raw(example, f"GET /\x1b[2J\x9b HTTP/1.1\r\nX: \x1b[31m\r\n\r\n") as connection:
        connection.shutdown(socket.SHUT_WR)
        answered(connection)
    wait_for(lambda: "dedup_key is not a UUID" in example.said())
    lines = example.said().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (listening on |127\.0\.0\.1: )",
                        line) for line in lines), lines
    assert not [line for line in lines if re.match(r"\S+ \S+ 10\.0\.0\.1", line)]
    assert example.said().replace("\n", "").isprintable()


@pytest.mark.parametrize("headers, status", [
    ("Content-Length: " + "1" * 5000, 400), ("Content-Length: 2\r\nContent-Length: 2", 400),
    ("Content-Length: 2\r\nContent-Length: 3", 400),
    ("Content-Length: 2\r\nTransfer-Encoding: chunked", 400), ("Transfer-Encoding: identity\r\nContent-Length: 2", 400),
    ("Transfer-Encoding: chunked", 411)])
def test_defect_21_a_length_is_one_number(example, headers, status):
    with raw(example, f"{HEAD}{headers}\r\n\r\n", b"{}") as connection:
        said = answered(connection)
    assert said.startswith(f"HTTP/1.1 {status} ") and "Connection: close" in said
    assert json.loads(said.split("\r\n\r\n")[1])["error"]
    assert "Traceback" not in example.said()


def test_defect_21_a_timestamp_of_many_digits(new_example, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("whsec_b25lIHNlY3JldCwgMzIgYnl0ZXMgbG9uZywgeWVzIQ==")
    example = new_example("--signing-secret-file", secret)
    signed = {"webhook_id": "a", "webhook_signature": "v1,x", "webhook_timestamp": "1" * 5000}
    assert example.post(body(insert(1)), **signed)[0] == 401


@pytest.mark.parametrize("data", [b"\0", b'{"changes": []}\0', b'{"changes": "\0"}'])
def test_defect_21_a_nul_is_no_json(example, data):
    status, answer, _ = example.post(data)
    assert (status, "NUL" in answer["error"]) == (400, True)


def threads(example):
    return len(os.listdir(f"/proc/{example.process.pid}/task"))


def test_defect_21_strangers_do_not_cost_a_thread_each(new_example):
    example = new_example("--clients", "10")
    before = threads(example)
    strangers = [socket.create_connection(("127.0.0.1", example.port)) for _ in range(60)]
    try:
        refused = [stranger for stranger in strangers[10:] if b" 503 " in stranger.recv(1000)]
        assert len(refused) == 50 and threads(example) <= before + 10
        # Those who say nothing are cut off, and then there is room again.
        wait_for(lambda: threads(example) == before, 15, "silent connections cut off")
        assert example.post(body(insert(1)))[0] == 200
    finally:
        for stranger in strangers:
            stranger.close()


def test_defect_21_a_slow_head_is_cut_off(example):
    began = time.monotonic()
    with raw(example, f"POST {PATH} HTTP/1.1\r\n") as connection:
        connection.settimeout(0.2)
        for letter in "X-Slow: " + "a" * 1000:
            try:
                connection.sendall(letter.encode())
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                pass
            except OSError:
                break
        assert 5 < time.monotonic() - began < 15


def test_defect_21_out_of_descriptors_it_waits(example):
    limit = len(os.listdir(f"/proc/{example.process.pid}/fd"))
    resource.prlimit(example.process.pid, resource.RLIMIT_NOFILE, (limit + 1, 4096))
    strangers = [socket.create_connection(("127.0.0.1", example.port)) for _ in range(5)]
    wait_for(lambda: "cannot take a connection" in example.said())
    spent, began = processor_time(example.process.pid), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2)
    assert processor_time(example.process.pid) - spent < 0.5
    for stranger in strangers:
        stranger.close()
    resource.prlimit(example.process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
    assert example.post(body(insert(1)))[0] == 200


AT_WORK = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sync_outbox receiver' AND state = 'active'"


def test_defect_17_a_sender_that_has_left_keeps_no_connection(new_example):
    """It sends again, and again: each time its old request is called off."""
    example = new_example("--connections", "2")
    example.db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM"
                   " pg_catalog.pg_sleep(60); RETURN NEW; END $$;"
                   "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION slow();"
                   "ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    data = json.dumps(body(insert(1))).encode()
    for _ in range(4):
        with raw(example, f"{HEAD}Content-Length: {len(data)}\r\n\r\n", data):
            wait_for(lambda: example.db.value(AT_WORK) > 0)
        wait_for(lambda: example.db.value(AT_WORK) == 0, 5, "called off")
    assert example.post(body(insert(2)))[0] == 200
    assert example.db.rows("SELECT id FROM sales") == [(2,)]


def test_defect_17_the_server_notices_a_receiver_that_is_gone(example):
    example.db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM"
                   " pg_catalog.pg_sleep(60); RETURN NEW; END $$;"
                   "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION slow();"
                   " ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    data = json.dumps(body(insert(1))).encode()
    with raw(example, f"{HEAD}Content-Length: {len(data)}\r\n\r\n", data):
        wait_for(lambda: example.db.value(AT_WORK) > 0)
        example.process.kill()
        wait_for(lambda: example.db.value(AT_WORK) == 0, 5, "noticed")


def test_defect_17_a_locked_row_is_one_stores_matter(example):
    example.db.run("INSERT INTO sales VALUES (1, 1)")
    example.db.server.set(sync_outbox__apply_lock_timeout="500ms")
    with example.db.session(autocommit=False) as holder:
        holder.execute("UPDATE sales SET qty = 2")
        held, free = insert(1, qty=3), insert(2, qty=3)
        status, answer, _ = example.post(body(held, free))
        assert (status, answer) == (200, {"acked": [free["dedup_key"]], "errors": [], "conflicts": []})
    assert example.post(body(held))[1]["acked"] == [held["dedup_key"]]


def test_defect_18_a_deep_value_is_refused_alone(example):
    example.db.run("ALTER TABLE sales ADD doc json")
    deep, good = insert(1, doc="DEEP"), insert(2, doc=[1])
    data = json.dumps(body(deep, good)).replace('"DEEP"', "[" * 20000 + "]" * 20000)
    status, answer, _ = example.post(data)
    assert status == 200 and answer["acked"] == [good["dedup_key"]]
    assert [entry["dedup_key"] for entry in answer["errors"]] == [deep["dedup_key"]]
    assert "stack depth" in answer["errors"][0]["error"]


def test_defect_18_what_is_too_much_at_once_has_the_sender_halve(example):
    example.db.run("ALTER FUNCTION sync_outbox_apply_text(text) RENAME TO hidden;"
                   "CREATE FUNCTION sync_outbox_apply_text(text) RETURNS json"
                   " LANGUAGE plpgsql AS $$ BEGIN RAISE 'no' USING ERRCODE = '54001'; END $$")
    assert example.post(body(insert(1)))[0] == 413
    example.db.run("DROP FUNCTION sync_outbox_apply_text(text);"
                   " ALTER FUNCTION hidden(text) RENAME TO sync_outbox_apply_text")


def test_a_bad_body_of_one_store_does_not_stop_the_others(new_example):
    """What is wrong is told with all 30 MB of it: in the database's log, in the receiver's, and in the answer."""
    example = new_example()
    bad = json.dumps({"changes": [insert(1) | {"dedup_key": "\u00e9" * (5 * MB)}]})
    assert len(bad) < 32 * MB
    done = []
    thread = threading.Thread(target=lambda: done.append(example.post(bad)[0]))
    before = len(example.said())
    thread.start()
    slowest, began = 0, time.monotonic()
    while thread.is_alive():
        at = time.monotonic()
        connection = example.connect()
        connection.request("GET", "/")
        connection.getresponse().read()
        slowest = max(slowest, time.monotonic() - at)
    print("status", done, "took", time.monotonic() - began, "slowest other", slowest, "log MB",
          (len(example.said()) - before) / MB)
    assert len(example.said()) - before < 100_000 and slowest < 1


def test_a_body_of_a_megabyte_does_not_restart_the_hub(new_example):
    """As --max-body of 1 MiB lets it through; the store's token is enough, no table need be accepted."""
    example = new_example("--max-body", str(1 << 20))
    bad = dict(insert(1), op="DELETE", table="nobody", pk={"id": "BOMB"})
    data = json.dumps(body(bad)).replace('"BOMB"', nested_json(250)).encode()
    position = example.db.server.log.position()
    print(len(data))
    print(example.post(data)[:2])
    # The session that applied it is at rest. If it had died, the server would end this one too.
    wait_for(lambda: example.db.value("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle'"
                                      " AND application_name = 'sync_outbox receiver'"))
    assert not example.db.server.log.matches("terminated by signal", position)


SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


@pytest.mark.parametrize("limit", ["1s", "30s", "0"])
def test_a_cancel_that_is_swallowed_keeps_no_connection(new_example, limit):
    """The sender leaves, the receiver cancels once, the owner's code catches it: a connection is gone for as long as it
    likes."""
    example = new_example("--connections", "1")
    example.db.server.set(sync_outbox__apply_statement_timeout=limit)
    example.db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                   " FOR i IN 1 .. 250 LOOP BEGIN PERFORM pg_catalog.pg_sleep(0.1);"
                   "EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN NEW; END $$;"
                   "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION slow();"
                   "ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    data = json.dumps(body(insert(1))).encode()
    with raw(example, f"{HEAD}Content-Length: {len(data)}\r\n\r\n", data):
        wait_for(lambda: example.db.value(SLEEPING) == 1)
    status, answer, _ = example.post(body(insert(2)))  # waits for a connection
    print(status, answer)
    assert status == 200
    # Nor does it keep a session of the server.
    wait_for(lambda: example.db.value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%apply_text%%'"
                                      " AND state = 'active'"
                                      " AND pid <> pg_backend_pid()") == 0, 5)


def test_what_waiting_requests_hold(new_example):
    """Bodies are read and decoded before a connection to the database is there: each is held as it came, and as text of
    four bytes a character."""
    example = new_example("--connections", "1")
    big = '{"changes": [], "x": "' + "😀" + "y" * (31 << 20) + '"}'
    data = big.encode()
    example.db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM"
                   " pg_catalog.pg_sleep(8); RETURN NEW; END $$;"
                   "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION slow();"
                   "ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    before = peak_memory(example.process.pid)
    threading.Thread(target=lambda: example.post(body(insert(1))), daemon=True).start()
    wait_for(lambda: example.db.value(SLEEPING) == 1)
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(example.post(data)[0]), daemon=True) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(statuses) == 8 and set(statuses) <= {200, 503}  # 503: no connection within five seconds
    # One copy more of each, as text, would be beyond it.
    assert peak_memory(example.process.pid) - before < 8 * 6.5 * len(data) / MB
