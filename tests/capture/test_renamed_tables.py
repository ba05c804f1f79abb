"""Tables that take each other's names: the order of a key holds."""

import pytest


def sent_keys(receiver):
    return [change["dedup_key"] for request in receiver.requests for change in request.changes]


def test_swapped_tables_keep_the_order(db, receiver):
    """Blue and green: the new table takes the old one's name, and has another priority."""
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_new (LIKE t INCLUDING ALL)")
    db.attach("t", priority="LOW")
    db.attach("t_new", priority="HIGH")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run("ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; INSERT INTO t VALUES (1, 2)")
    low, high = db.outbox()
    assert (low.table_name, high.table_name, low.pk, high.pk) == ("t", "t", {"id": 1}, {"id": 1})
    db.flush()
    ids = [str(k) for k in sent_keys(receiver)]
    assert ids == [str(low.dedup_key), str(high.dedup_key)]


@pytest.mark.parametrize("again", ["", "BEGIN; SAVEPOINT s; INSERT INTO t VALUES (9, 9); ROLLBACK TO s;"])
def test_swapped_there_and_back_keep_the_order(db, receiver, again):
    """Nothing waits when the names are swapped; a change of the new table is refused, and the old table comes back."""
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_new (LIKE t INCLUDING ALL)")
    db.attach("t", priority="LOW")
    db.attach("t_new", priority="HIGH")
    db.run("ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t")
    with db.session() as session:
        for statement in f"{again} INSERT INTO t VALUES (1, 1); COMMIT".split(";"):
            session.execute(statement)
        session.execute("INSERT INTO t VALUES (2, 2)")
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 1, "one record for both transactions"
    db.run("ALTER TABLE t RENAME TO t_new; ALTER TABLE t_old RENAME TO t; INSERT INTO t VALUES (1, 3)")
    high, other, low = db.outbox()
    db.flush()
    ids = [str(k) for k in sent_keys(receiver)]
    assert ids.index(str(high.dedup_key)) < ids.index(str(low.dedup_key))
    db.flush()
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 0, "forgotten when nothing of it is left"


def test_a_renamed_table_is_attached_under_its_new_name(db, receiver):
    """While changes wait under that name elsewhere nothing changes; when they are gone, nothing needs to be compared
    any more."""
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_new (LIKE t INCLUDING ALL)")
    db.attach("t", priority="LOW")
    db.attach("t_new", priority="HIGH")
    db.run("INSERT INTO t VALUES (1, 1); ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t")
    named = ("SELECT encode(tgargs, 'escape') FROM pg_trigger WHERE tgrelid = 't'::regclass"
             " AND tgname = '!sync_outbox_row'")
    before = db.value(named)
    db.attach("t", priority="HIGH")
    assert db.value(named) == before
    db.flush()
    db.attach("t", priority="HIGH")
    assert '"named":["",""]' in db.value(named), "t_old was attached as t too"
    db.attach("t_old", priority="LOW")
    db.run("ALTER TABLE t RENAME TO u")
    db.attach("u", priority="HIGH")
    assert '"named":["public","u"]' in db.value(named.replace("'t'", "'u'"))
    db.run("INSERT INTO u VALUES (1, 2)")
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 0


def test_renamed_attached_and_renamed_back(db, receiver):
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t", priority="LOW")
    db.run("INSERT INTO t VALUES (1, 1)")
    db.run("ALTER TABLE t RENAME TO t2")
    db.attach("t2", priority="HIGH")
    db.run("ALTER TABLE t2 RENAME TO t; UPDATE t SET v = 2")
    low, high = db.outbox()
    db.flush()
    assert [str(k) for k in sent_keys(receiver)] == [str(low.dedup_key), str(high.dedup_key)]


def test_what_is_imported_for_a_renamed_table_stays_before_what_waits(db, receiver):
    """The name of the old changes is now that of a table with another priority."""
    db.aim(receiver)
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE t_new (LIKE t INCLUDING ALL)")
    db.attach("t", priority="HIGH")
    db.attach("t_new", priority="LOW")
    db.run("INSERT INTO t VALUES (1, 2); ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t")
    db.run("""CREATE TABLE outbox_old (id bigint, schema_name text, table_name text, op text, pk jsonb, data jsonb);
        INSERT INTO outbox_old VALUES (1, 'public', 't', 'INSERT', '{"id": 1}', '{"id": 1, "v": 1}')""")
    db.value("SELECT sync_outbox_import('outbox_old')")
    old, high = db.outbox()
    db.flush()
    db.flush()
    sent = [change["dedup_key"] for request in receiver.requests for change in request.changes]
    assert sent == [str(old.dedup_key), str(high.dedup_key)]
    db.flush()
    assert db.value("SELECT count(*) FROM sync_outbox_lane") == 0
