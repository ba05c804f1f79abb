"""Columns that attach was told by name: when one of them is not what it was, nothing is captured until somebody has said again
what is meant."""

import threading

import pytest
from psycopg import errors

from support.wait import wait_for


@pytest.fixture
def db(db, append):
    return append(db)


@pytest.fixture
def cards(db):
    db.run("CREATE TABLE u (id int PRIMARY KEY, code int NOT NULL UNIQUE, name text, store text, card text)")
    return db


def refused(db, statement, error=errors.UndefinedColumn, rows=None):
    """The write fails with a HINT that names the call, and leaves nothing behind."""
    before = db.value("SELECT count(*) FROM sync_outbox")
    with pytest.raises(error) as refusal:
        db.run(statement)
    assert "Call sync_outbox_attach('\"public\".\"" in refusal.value.diag.message_hint
    assert db.value("SELECT count(*) FROM sync_outbox") == before
    return refusal.value.diag


NAMED = {"exclude": ("card", {"exclude": ["card"]}), "columns": ("name", {"columns": ["name", "id"]}),
         "key_columns": ("code", {"key_columns": ["code"]}), "branch_column": ("store", {"branch_column": "store"})}


@pytest.mark.parametrize("argument", NAMED)
@pytest.mark.parametrize("change", ["RENAME {} TO changed", "DROP {}"])
@pytest.mark.parametrize("seen_before", [True, False], ids=["planned", "fresh"])
def test_defect_07_a_column_that_is_gone(cards, argument, change, seen_before):
    column, options = NAMED[argument]
    cards.attach("u", **options)
    if seen_before:
        cards.run("INSERT INTO u VALUES (1, 1, 'n', 's', '4111')")
    cards.run(f"ALTER TABLE u {change.format(column)}")
    diag = refused(cards, "INSERT INTO u (id) VALUES (2)" if argument == "key_columns" and "DROP" in change
                   else "INSERT INTO u VALUES (2, 2)" if "DROP" in change else "INSERT INTO u VALUES (2, 2, 'n', 's', '4111')")
    assert f'"{column}"' in diag.message_primary and argument in diag.message_primary
    if seen_before:
        refused(cards, "UPDATE u SET id = 3")
        refused(cards, "DELETE FROM u")
    with pytest.raises(errors.UndefinedColumn) as refusal:
        cards.run("SELECT sync_outbox_backfill('u')")
    assert "sync_outbox_attach(" in refusal.value.diag.message_hint

    cards.attach("u", **({"exclude": ["changed"]} if argument == "exclude" and "RENAME" in change else {}))
    cards.run("DELETE FROM u; INSERT INTO u (id, name) VALUES (9, 'n')" if argument == "key_columns" and "DROP" in change else
              "DELETE FROM u; INSERT INTO u (id, " + ("changed" if argument == "key_columns" else "code") + ") VALUES (9, 9)")
    assert cards.outbox()[-1].data["id"] == 9
    assert "4111" not in str([change.data for change in cards.outbox()]) or argument != "exclude"


def test_defect_07_another_column_under_the_excluded_name(cards):
    """`card` is there again, but what was excluded is called otherwise now."""
    cards.attach("u", exclude=["card"])
    cards.run("INSERT INTO u VALUES (1, 1, 'n', 's', '4111')")
    cards.run("ALTER TABLE u RENAME card TO card_number; ALTER TABLE u ADD card text")
    refused(cards, "INSERT INTO u VALUES (2, 2, 'n', 's', '4111', 'x')")
    refused(cards, "SELECT sync_outbox_backfill('u')")

    cards.attach("u", exclude=["card", "card_number"])
    cards.run("INSERT INTO u VALUES (2, 2, 'n', 's', '4111', 'x')")
    assert cards.outbox()[-1].data == {"id": 2, "code": 2, "name": "n", "store": "s"}


def test_defect_07_other_columns_come_and_go(cards):
    """What was not named may change as before."""
    cards.attach("u", exclude=["card"])
    cards.run("ALTER TABLE u RENAME name TO title; ALTER TABLE u DROP store; ALTER TABLE u ADD extra int DEFAULT 5")
    cards.run("INSERT INTO u VALUES (1, 1, 'n', '4111')")
    assert cards.outbox()[-1].data == {"id": 1, "code": 1, "title": "n", "extra": 5}


def test_defect_07_the_excluded_column_becomes_the_key(cards):
    cards.attach("u", exclude=["card"])
    cards.run("INSERT INTO u VALUES (1, 1, 'n', 's', '4111')")
    cards.run("ALTER TABLE u DROP CONSTRAINT u_pkey; ALTER TABLE u ADD PRIMARY KEY (card)")
    refused(cards, "INSERT INTO u VALUES (2, 2, 'n', 's', '4112')", errors.ObjectNotInPrerequisiteState)


@pytest.mark.parametrize("change", [
    "ALTER TABLE u DROP CONSTRAINT u_code_key", "ALTER TABLE u ALTER code DROP NOT NULL",
    "ALTER TABLE u DROP CONSTRAINT u_code_key; CREATE UNIQUE INDEX ON u (code) WHERE code > 0",
    "ALTER TABLE u DROP CONSTRAINT u_code_key; ALTER TABLE u ADD UNIQUE (code) DEFERRABLE",
    "ALTER TABLE u DROP CONSTRAINT u_code_key; CREATE UNIQUE INDEX ON u (abs(code))",
])
def test_defect_07_a_key_that_is_none_any_more(cards, change):
    cards.attach("u", key_columns=["code"])
    cards.run("INSERT INTO u VALUES (1, 1)")
    cards.run(change)
    refused(cards, "INSERT INTO u VALUES (2, 2)", errors.ObjectNotInPrerequisiteState)
    refused(cards, "DELETE FROM u", errors.ObjectNotInPrerequisiteState)


def test_defect_07_the_keys_type_changes(cards):
    cards.attach("u", key_columns=["code"], exclude=["card"])
    cards.run("INSERT INTO u VALUES (1, 1); ALTER TABLE u ALTER code TYPE text; INSERT INTO u VALUES (2, 'b')")
    assert [change.pk for change in cards.outbox()] == [{"code": 1}, {"code": "b"}]
    cards.run("CREATE COLLATION nd (provider = icu, locale = 'und', deterministic = false); ALTER TABLE u ALTER code TYPE text COLLATE nd")
    refused(cards, "INSERT INTO u VALUES (3, 'c')", errors.ObjectNotInPrerequisiteState)


@pytest.fixture
def parts(db):
    """A leaf with its columns in another order, and one that was dropped."""
    db.run("""CREATE TABLE sale (id int, year int, qty int, card text, PRIMARY KEY (id, year)) PARTITION BY RANGE (year);
              CREATE TABLE sale_0 PARTITION OF sale FOR VALUES FROM (0) TO (4);
              CREATE TABLE sale_4 (card text, gone int, qty int, year int NOT NULL, id int NOT NULL);
              ALTER TABLE sale_4 DROP gone;
              ALTER TABLE sale ATTACH PARTITION sale_4 FOR VALUES FROM (4) TO (8)""")
    db.attach("sale", exclude=["card"])
    return db


@pytest.mark.parametrize("leaf", ["sale_0", "sale_4"])
@pytest.mark.parametrize("written", [True, False], ids=["planned", "fresh"])
def test_defect_07_partitions(parts, leaf, written):
    write = "INSERT INTO {} (id, year, qty{}) VALUES ({}, {}, 1, '4111')"
    year = leaf[-1]
    if written:
        for n, table in enumerate(["sale", leaf]):
            parts.run(write.format(table, ", card", n, year))
        assert [change.data for change in parts.outbox()] == [{"id": n, "year": int(year), "qty": 1} for n in (0, 1)] or \
            all(set(change.data) == {"id", "year", "qty"} for change in parts.outbox())
    parts.run("ALTER TABLE sale RENAME card TO number")
    for table in ("sale", leaf):
        refused(parts, write.format(table, ", number", 5, year))
    parts.run("ALTER TABLE sale ADD card text")
    for table in ("sale", leaf):
        refused(parts, write.format(table, ", number", 5, year))
    parts.attach("sale", exclude=["card", "number"])
    for n, table in enumerate(["sale", leaf]):
        parts.run(write.format(table, ", number", 7 + n, year))
    assert "4111" not in str(parts.rows("SELECT data::text FROM sync_outbox"))


def test_defect_07_inheritance_children(db):
    db.run("""CREATE TABLE parent (id int PRIMARY KEY, card text);
              CREATE TABLE kid (extra int, PRIMARY KEY (id)) INHERITS (parent)""")
    db.attach("kid", exclude=["card"])
    db.run("INSERT INTO kid VALUES (1, '4111', 2)")
    assert db.outbox()[-1].data == {"id": 1, "extra": 2}
    db.run("ALTER TABLE parent RENAME card TO number")
    refused(db, "INSERT INTO kid VALUES (2, '4111', 2)")


def test_defect_07_a_restored_table_goes_on(cards, run, quiet_server):
    """A dump carries names; the numbers of columns close up in it."""
    if cards.value("SELECT count(*) FROM pg_attribute WHERE attrelid = 'sync_outbox'::regclass AND attname = 'inserted_at'"):
        pytest.skip("the altered outbox is no part of a dump")
    cards.run("ALTER TABLE u ADD gone int; ALTER TABLE u ADD secret text; ALTER TABLE u DROP gone")
    cards.attach("u", exclude=["secret"])
    dumped = run.call("pg_dump", "-h", quiet_server.sockets, "-U", "postgres", cards.name)
    other = quiet_server.create_database()
    run_file = run.where / f"{cards.name}.sql"
    run_file.write_text(dumped)
    run_file.chmod(0o644)
    run.call("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", quiet_server.sockets, "-U", "postgres", "-d", other.name, "-f", run_file)
    other.run("INSERT INTO u (id, code, secret) VALUES (1, 1, 'x')")
    assert other.outbox()[-1].data == {"id": 1, "code": 1, "name": None, "store": None, "card": None}
    other.attach("u", exclude=["secret"])
    other.run("ALTER TABLE u RENAME secret TO kept; ALTER TABLE u ADD secret text")
    refused(other, "INSERT INTO u (id, code, kept) VALUES (2, 2, 'x')")
    other.close()
    quiet_server.drop_database(other.name)


# The plan, and what changes while somebody writes

def test_the_root_is_renamed_while_a_partition_is_written(parts):
    """Who writes to a partition directly has no lock on the root: its new name counts from the next row on."""
    parts.run("INSERT INTO sale SELECT n, 1, 1 FROM generate_series(1, 4) n; TRUNCATE sync_outbox")
    # Sleeps between two of its writes, which are one statement for the parser.
    parts.run("""CREATE FUNCTION gone(wanted int) RETURNS void LANGUAGE plpgsql AS
                 $$ BEGIN DELETE FROM sale_0 WHERE id = wanted; PERFORM pg_advisory_xact_lock(wanted); END $$""")
    parts.run("SELECT pg_advisory_lock(2)")
    writer = parts.session(autocommit=False)
    writer.execute("SELECT gone(1)")
    done = threading.Thread(target=lambda: writer.execute("SELECT gone(n) FROM generate_series(2, 4) n"))
    done.start()
    waits = "SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted"
    wait_for(lambda: parts.value(waits, [writer.info.backend_pid]), what="it is in the middle")
    other = parts.session()
    other.execute("SET lock_timeout = '5s'; ALTER TABLE sale RENAME TO sold")
    parts.run("SELECT pg_advisory_unlock(2)")
    done.join(20)
    writer.commit()
    assert [change.table_name for change in parts.outbox()] == ["sale", "sale", "sold", "sold"]


def test_what_changes_while_a_plan_is_made(parts):
    """The plan of a partition is being made, and waits for a lock of a catalog, while the root gets another name."""
    parts.run("INSERT INTO sale SELECT n, 1, 1 FROM generate_series(1, 3) n; TRUNCATE sync_outbox")
    writer = parts.session()
    # It has made the plan once: so it waits when it looks at the key's index, and not before it has the root's name.
    writer.execute("DELETE FROM sale_0 WHERE id = 3")
    parts.run("ALTER TABLE sale_0 SET (fillfactor = 90)")
    blocker = parts.session(autocommit=False)
    blocker.execute("LOCK TABLE pg_opclass IN ACCESS EXCLUSIVE MODE")
    # Not an INSERT, which would look at the partition's bounds and lock the root for them.
    first = threading.Thread(target=lambda: writer.execute("DELETE FROM sale_0 WHERE id = 1"))
    first.start()
    waits = "SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted"
    wait_for(lambda: parts.value(waits, [writer.info.backend_pid]), what="the plan is being made")
    blocker.execute("ALTER TABLE sale RENAME TO sold")
    blocker.commit()
    first.join(20)
    writer.execute("DELETE FROM sale_0 WHERE id = 2")
    assert parts.outbox()[-1].table_name == "sold"
