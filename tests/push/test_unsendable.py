"""Defect 6 of 0.1.0 and its class: nothing that a writer can store stops a target. A change that cannot be sent is DEAD with
the reason, alone."""

import pytest

from support.database import Database
from support.wait import wait_for

MB = 1 << 20


def shop_on(db, receiver):
    db.aim(receiver)
    db.run("CREATE TABLE sales (id int PRIMARY KEY, note text)")
    db.attach("sales")
    return db


@pytest.fixture
def windows(quiet_server, watched, receiver):
    """A database whose encoding has bytes that stand for no character."""
    db = watched(quiet_server).create_database("ENCODING 'WIN1252' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    db.run("SET client_encoding = 'UTF8'; SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    yield shop_on(db, receiver)
    db.close()
    quiet_server.drop_database(db.name)


@pytest.fixture(params=["direct", "altered"])
def store(request, windows):
    return Database.alter_outbox(windows) if request.param == "altered" else windows


NO_CHARACTER = r"convert_from('\x81'::bytea, 'WIN1252')"


def test_defect_06_what_has_no_place_in_utf_8_is_dead_alone(store, receiver):
    store.run(f"INSERT INTO sales VALUES (1, 'a'), (2, {NO_CHARACTER}), (3, 'Málaga')")
    store.run("UPDATE sales SET note = 'later' WHERE id = 2")
    answer = store.flushed()

    assert {name: answer[name] for name in ("sent", "acked", "dead", "blocked")} == {"sent": 2, "acked": 2, "dead": 1, "blocked": 1}
    assert [change["data"]["note"] for change in receiver.changes] == ["a", "Málaga"]
    rows = store.rows("SELECT status::text, error_message, refusals FROM sync_outbox ORDER BY id")
    assert [(row.status, row.refusals) for row in rows] == [("DEAD", 0), ("PENDING", 0)]
    assert "0x81" in rows[0].error_message and "UTF-8" in rows[0].error_message

    # A person decides about it; then what waited for it goes.
    (dead, _) = store.rows("SELECT id FROM sync_outbox ORDER BY id")
    store.run("SELECT sync_outbox_discard(%s, 'has no character')", [[dead.id]])
    assert store.flushed()["ok"]


def test_defect_06_a_long_reason_of_an_older_version_travels_in_the_body_alone(sales, receiver):
    """Such a header would be turned away with 431, and everything else with it."""
    sales.run("INSERT INTO sales VALUES (1), (2)")
    sales.run("UPDATE sync_outbox SET reason = repeat('why ', 17500)")
    assert sales.flushed()["acked"] == 2
    (request,) = receiver.requests
    assert "x-reason" not in request.headers
    assert request.changes[0]["reason"] == "why " * 17500


def test_defect_06_a_reason_that_is_long_when_it_is_encoded_is_no_header_either(sales, receiver):
    sales.run("SET sync_outbox.reason = %s" % ("'" + "ñ" * 300 + "'"))
    sales.run("INSERT INTO sales VALUES (1)")
    assert sales.flushed()["acked"] == 1
    assert "x-reason" not in receiver.requests[0].headers


@pytest.mark.parametrize("by", ["flush", "worker"])
def test_defect_06_what_there_is_no_memory_for_is_dead_alone(new_server, receiver, by):
    """Stored by a server with enough memory, sent by one with less."""
    server = new_server(preload=by == "worker")
    db = server.create_database()
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; RESET client_min_messages")
    shop_on(db, receiver)
    db.run("SELECT sync_outbox_pause()")
    db.run(f"INSERT INTO sales VALUES (1, 'before'), (2, repeat('x', {250 * MB})), (3, 'after')")
    db.close()
    server.stop()
    server.through = ("prlimit", f"--as={640 * MB}")
    server.start()
    db = Database(server, db.name)
    db.run("SELECT sync_outbox_resume()")
    if by == "flush":
        db.flush()
        db.flush()
    wait_for(lambda: sorted({change["pk"]["id"] for change in receiver.changes}) == [1, 3], 20)
    wait_for(lambda: db.value("SELECT count(*) FROM sync_outbox") == 1, 20)
    (left,) = wait_for(lambda: db.rows("SELECT status::text, error_message FROM sync_outbox WHERE status = 'DEAD'"), 20)
    assert left.status == "DEAD" and "memory" in left.error_message
    db.close()
