"""A hostile reader's attempts at the example receiver."""

import json
import pathlib
import threading
import time

import pytest

from support.wait import wait_for
from test_defects_receiver import HEAD, body, insert, new_example, raw  # noqa: F401
from test_fourth_reading_hub import hwm, raw_bomb


def test_a_body_of_a_megabyte_does_not_restart_the_hub(new_example):  # noqa: F811
    """As --max-body of 1 MiB lets it through; the store's token is enough, no table need be accepted."""
    example = new_example("--max-body", str(1 << 20))
    bad = dict(insert(1), op="DELETE", table="nobody", pk={"id": "BOMB"})
    data = json.dumps(body(bad)).replace('"BOMB"', raw_bomb(250)).encode()
    position = example.db.server.log.position()
    print(len(data))
    try:
        print(example.post(data)[:2])
    finally:
        time.sleep(1)
        died = example.db.server.log.matches("terminated by signal", position)
    assert not died


@pytest.mark.parametrize("limit", ["1s", "30s", "0"])
def test_a_cancel_that_is_swallowed_keeps_no_connection(new_example, limit):  # noqa: F811
    """The sender leaves, the receiver cancels once, the owner's code catches it: a connection is gone for as long as it likes."""
    example = new_example("--connections", "1")
    example.db.server.set(sync_outbox__apply_statement_timeout=limit)
    example.db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1 .. 250 LOOP BEGIN PERFORM pg_catalog.pg_sleep(0.1);"
                   "EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN NEW; END $$;"
                   "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION slow();"
                   "ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    data = json.dumps(body(insert(1))).encode()
    with raw(example, f"{HEAD}Content-Length: {len(data)}\r\n\r\n", data):
        time.sleep(0.5)
    time.sleep(2)
    status, answer, _ = example.post(body(insert(2)))
    print(status, answer)
    assert status == 200
    # Nor does it keep a session of the server.
    wait_for(lambda: example.db.value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%apply_text%%' AND state = 'active'"
                                      " AND pid <> pg_backend_pid()") == 0, 5)


def test_what_waiting_requests_hold(new_example):  # noqa: F811
    """Bodies are read and decoded before a connection to the database is there: each is held several times over."""
    example = new_example("--connections", "1")
    data = json.dumps(body(insert(1, note="X" * (30 << 20))), ensure_ascii=False).replace("X" * 100, "X" * 98 + "😀").encode()[:0]
    big = '{"changes": [], "x": "' + "😀" + "y" * (31 << 20) + '"}'
    data = big.encode()
    example.db.run("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.pg_sleep(8); RETURN NEW; END $$;"
                   "CREATE TRIGGER slow BEFORE INSERT ON sales FOR EACH ROW EXECUTE FUNCTION slow();"
                   "ALTER TABLE sales ENABLE ALWAYS TRIGGER slow")
    before = hwm(example.process.pid)
    threading.Thread(target=lambda: example.post(body(insert(1))), daemon=True).start()
    time.sleep(0.5)
    threads = [threading.Thread(target=lambda: example.post(data), daemon=True) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    print("8 requests of", len(data) >> 20, "MiB:", before, "->", hwm(example.process.pid), "MiB")
