"""Columns that take each other's names: what was excluded stays excluded."""

import json

import pytest
from psycopg import errors


@pytest.mark.parametrize("options", [{"exclude": ["card"]}, {"columns": ["card"]}, {"columns": ["label"]}])
def test_renamed_over_an_older_column(db, options):
    """The column that was meant is renamed, and an older one gets its name."""
    db.run("CREATE TABLE u (id int PRIMARY KEY, label text, card text)")
    db.attach("u", **options)
    db.run("INSERT INTO u VALUES (1, 'lamp', '4111')")
    db.run("ALTER TABLE u RENAME label TO x")
    db.run("ALTER TABLE u RENAME card TO label")
    db.run("ALTER TABLE u RENAME x TO card")
    before = {json.dumps(change.data) for change in db.outbox()}
    try:
        db.run("INSERT INTO u VALUES (2, 'lamp', '4111')")
    except Exception as error:
        assert getattr(error, "sqlstate", None) == "42703"
    told = "4111" in json.dumps([c.data for c in db.outbox("pk->>'id' = '2'")])
    told_before = "4111" in "".join(before)
    assert told <= told_before, "what was private is sent"


def test_branch_column_renamed_over(db):
    db.run("CREATE TABLE s (id int PRIMARY KEY, secret text, store text)")
    db.attach("s", branch_column="store", exclude=["secret"])
    db.run("INSERT INTO s VALUES (1, 'pssst', 'S1')")
    db.run("ALTER TABLE s RENAME store TO x; ALTER TABLE s RENAME secret TO store; ALTER TABLE s RENAME x TO secret")
    try:
        db.run("INSERT INTO s VALUES (2, 'pssst', 'S1')")
    except Exception as error:
        assert getattr(error, "sqlstate", None) == "42703"
    assert not [c for c in db.outbox() if c.branch == "pssst" or "pssst" in json.dumps(c.data)]


def test_attached_columns_dropped_and_another_renamed(db):
    """columns => what may be told: the name comes to stand for another column."""
    db.run("CREATE TABLE u (id int PRIMARY KEY, label text, card text)")
    db.attach("u", columns=["label"])
    db.run("ALTER TABLE u DROP label; ALTER TABLE u RENAME card TO label")
    try:
        db.run("INSERT INTO u VALUES (1, '4111')")
    except Exception as error:
        assert getattr(error, "sqlstate", None) == "42703"
    assert "4111" not in json.dumps([c.data for c in db.outbox()])


def test_an_excluded_column_that_changes_names_with_an_earlier_one_stays_excluded(db):
    db.run("CREATE TABLE cards (id int PRIMARY KEY, note text, pan text)")
    db.attach("cards", exclude=["pan"])
    db.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards RENAME note TO pan")
    try:
        db.run("INSERT INTO cards (id, pan, pan_old) VALUES (1, 'a note', '4111 1111 1111 1111')")
    except errors.UndefinedColumn:
        return  # refused, as it should be
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


def test_an_included_column_that_changes_names_with_another_is_not_captured_for_it(db):
    db.run("CREATE TABLE cards (id int PRIMARY KEY, note text, pan text)")
    db.attach("cards", columns=["note"])
    db.run("ALTER TABLE cards RENAME note TO note_old; ALTER TABLE cards RENAME pan TO note")
    try:
        db.run("INSERT INTO cards VALUES (1, 'a note', '4111 1111 1111 1111')")
    except errors.UndefinedColumn:
        return
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


def test_a_restored_tables_excluded_column_that_was_replaced_stays_excluded(db):
    """As a dump and restore leaves it: the column was the fourth when it was named, and is the second now."""
    db.run("CREATE TABLE cards (id int PRIMARY KEY, a int, b int, pan text); ALTER TABLE cards DROP a, DROP b")
    db.attach("cards", exclude=["pan"])
    trigger = db.value("SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'cards'::regclass"
                       " AND tgname = '!sync_outbox_row'")
    db.run("DROP TABLE cards; CREATE TABLE cards (id int PRIMARY KEY, pan text)")
    db.run(trigger)
    db.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards ADD pan text")
    try:
        db.run("INSERT INTO cards VALUES (1, '4111 1111 1111 1111')")
    except errors.UndefinedColumn:
        return
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


def restored(db, table, columns):
    """As a dump and restore leaves it."""
    trigger = db.value(f"SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = '{table}'::regclass"
                       " AND tgname = '!sync_outbox_row'")
    db.run(f"DROP TABLE {table}; CREATE TABLE {table} ({columns})")
    db.run(trigger)


@pytest.mark.parametrize("options", [{"exclude": ["pan"]}, {"columns": ["pan"]}])
def test_a_restored_table_loses_a_column_in_front_and_the_excluded_one_is_replaced(db, options):
    db.run("CREATE TABLE cards (id int PRIMARY KEY, a int, b int, pan text)")
    db.attach("cards", **options)
    restored(db, "cards", "id int PRIMARY KEY, a int, b int, pan text")
    db.run("INSERT INTO cards VALUES (0, 1, 2, 'x')")
    db.run("ALTER TABLE cards DROP a; INSERT INTO cards VALUES (-1, 2, 'x')")
    db.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards ADD pan text")
    with pytest.raises(errors.UndefinedColumn):
        db.run("INSERT INTO cards VALUES (1, 2, '4111 1111 1111 1111')")
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])


def test_a_restored_table_lost_a_column_before_the_dump_and_the_excluded_one_is_replaced(db):
    db.run("CREATE TABLE cards (id int PRIMARY KEY, a int, b int, pan text)")
    db.attach("cards", exclude=["pan"])
    db.run("ALTER TABLE cards DROP a, DROP b; INSERT INTO cards VALUES (0, 'x')")
    restored(db, "cards", "id int PRIMARY KEY, pan text")
    with pytest.raises(errors.UndefinedColumn):  # nobody can tell by now that it is the same
        db.run("INSERT INTO cards VALUES (0, 'x')")
    db.attach("cards", exclude=["pan"])
    db.run("INSERT INTO cards VALUES (0, 'x')")
    db.run("ALTER TABLE cards RENAME pan TO pan_old; ALTER TABLE cards ADD pan text")
    with pytest.raises(errors.UndefinedColumn):
        db.run("INSERT INTO cards VALUES (1, '4111 1111 1111 1111')")
    assert "4111" not in json.dumps([data for _, _, data in db.changes()])
