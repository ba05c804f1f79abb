"""How long a reason may be, and what a branch is that came as JSON."""

import pytest
from psycopg import errors


@pytest.fixture
def db(db, append):
    return append(db)


def test_defect_06_a_reason_has_at_most_a_thousand_characters(sales):
    for reason in ("x" * 1000, "ñ" * 1000, "\U0001f600" * 1000, "  " + "y" * 1000 + "  "):
        sales.run("SELECT set_config('sync_outbox.reason', %s, false)", [reason])
        sales.run("INSERT INTO sales VALUES (1); DELETE FROM sales")
        assert [change.reason for change in sales.outbox()][-2:] == [reason.strip()] * 2
    count = len(sales.outbox())
    for reason in ("x" * 1001, "ñ" * 1001, "x" * 70_000):
        sales.run("SELECT set_config('sync_outbox.reason', %s, false)", [reason])
        for write in ("INSERT INTO sales VALUES (1)", "SELECT sync_outbox_backfill('sales')"):
            with pytest.raises(errors.StringDataRightTruncation) as refused:
                sales.run(write)
            assert "SET sync_outbox.reason" in refused.value.diag.message_hint
    assert len(sales.outbox()) == count
    sales.run("RESET sync_outbox.reason; INSERT INTO sales VALUES (1)")


def test_defect_06_characters_are_those_of_the_database(quiet_server, watched, append):
    db = append_to(watched(quiet_server), append, "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    db.run("SET sync_outbox.reason = 'corrección'; INSERT INTO t VALUES (1)")
    db.run("SELECT set_config('sync_outbox.reason', repeat('ñ', 1000), false)")
    db.run("INSERT INTO t VALUES (2)")
    assert [len(change.reason) for change in db.outbox()] == [10, 1000]
    db.run("SELECT set_config('sync_outbox.reason', repeat('ñ', 1001), false)")
    with pytest.raises(errors.StringDataRightTruncation):
        db.run("INSERT INTO t VALUES (3)")
    db.attach("t", require_reason=True)
    db.run("SET sync_outbox.reason = 'ñandú'; INSERT INTO t VALUES (3); SET sync_outbox.reason = 'ñand'")
    with pytest.raises(errors.CheckViolation):
        db.run("INSERT INTO t VALUES (4)")
    db.close()
    quiet_server.drop_database(db.name)


def append_to(server, append, options):
    db = server.create_database(options)
    db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox; CREATE TABLE t (id int PRIMARY KEY, v text)")
    db.attach("t")
    return append(db)


@pytest.mark.parametrize("type, value, branch", [
    ("text", "S1", "S1"), ("text", '"S1"', '"S1"'), ("text", 'a\\b"c\n\t\x01é', 'a\\b"c\n\t\x01é'), ("text", "", ""),
    ("int", "7", "7"), ("uuid", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"),
    ("date", "2024-02-29", "2024-02-29"), ("numeric", "NaN", "NaN"), ("bytea", "\\x00ff", "\\x00ff"),
    ("inet", "10.0.0.1", "10.0.0.1"), ("json", '"S\\n1"', "S\n1"), ("json", '{"a": 1}', '{"a": 1}'),
    # What text cannot hold, or what is no ASCII, stays escaped.
    ("json", '"\\u00e9\\u0041\\u0000\\\\"', "\\u00e9A\\u0000\\"), ("jsonb", '"\\u00e9"', "é"),
])
def test_a_branch_is_plain_text(db, type, value, branch):
    db.run(f"CREATE TABLE b (id int PRIMARY KEY, store {type})")
    db.attach("b", branch_column="store")
    db.run("INSERT INTO b VALUES (1, %s::text::" + type + ")", [value])
    db.run("DELETE FROM b")
    assert [change.branch for change in db.outbox()] == [branch, branch]
    assert db.value("SELECT count(*) FROM sync_outbox WHERE branch = %s", [branch]) == 2
