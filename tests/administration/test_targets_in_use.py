"""Targets that are dropped, renamed or made again while transactions that write for them are open."""

import pytest


def test_target_drop_and_a_table_renamed_inside(db):
    """A transaction that wrote for the target, and detached its table, is open."""
    db.run("SELECT sync_outbox_target_set('x', '{}')")
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t", target="x")
    other = db.session(autocommit=False)
    other.execute("INSERT INTO t VALUES (1)")
    other.execute("SELECT sync_outbox_detach('t')")
    other.execute("ALTER TABLE t RENAME TO t2")
    db.run("SET lock_timeout = '1s'")
    with pytest.raises(Exception) as failed:
        db.run("SELECT sync_outbox_target_drop('x')")
    print(failed.value)
    other.commit()
    with pytest.raises(Exception) as failed:
        db.run("SELECT sync_outbox_target_drop('x')")
    assert failed.value.sqlstate == "55000"


def test_target_drop_and_a_dropped_trigger(db):
    """The owner has dropped the trigger by hand while a writer's transaction is open."""
    db.run("SELECT sync_outbox_target_set('x', '{}')")
    db.run("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE l PARTITION OF t FOR VALUES FROM (0) TO (10)")
    db.attach("t", target="x")
    other = db.session(autocommit=False)
    other.execute("INSERT INTO l VALUES (1)")
    third = db.session()
    third.execute("SET lock_timeout = '500ms'")
    for ddl in ["ALTER TABLE t DETACH PARTITION l", "DROP TABLE t", "SELECT sync_outbox_detach('t')"]:
        with pytest.raises(Exception) as failed:
            third.execute(ddl)
        assert failed.value.sqlstate == "55P03", ddl
    other.commit()


def test_a_target_made_again_in_one_transaction(db):
    """A session with a plan of the old target writes for the new one."""
    db.run("SELECT sync_outbox_target_set('x', '{}')")
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t", target="x")
    writer = db.session()
    writer.execute("SET sync_outbox.capture = on; INSERT INTO t VALUES (1)")
    db.run("DELETE FROM sync_outbox")
    db.run("SELECT sync_outbox_detach('t'); SELECT sync_outbox_target_drop('x'); SELECT sync_outbox_target_set('x', '{}')")
    db.attach("t", target="x")
    writer.execute("INSERT INTO t VALUES (2)")
    (change,) = db.outbox()
    assert change.target_id == db.value("SELECT id FROM sync_outbox_target WHERE name = 'x'")


def test_a_restored_target_rename(db):
    """A superuser renames a target: plans know it by id."""
    db.run("SELECT sync_outbox_target_set('x', '{}')")
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    db.attach("t", target="x")
    db.run("INSERT INTO t VALUES (1)")
    db.run("UPDATE sync_outbox_target SET name = 'y' WHERE name = 'x'")
    db.run("INSERT INTO t VALUES (2)")
    with pytest.raises(Exception) as failed:
        db.run("SELECT sync_outbox_target_drop('y')")
    assert failed.value.sqlstate == "55000"
    db.run("SELECT sync_outbox_discard(ARRAY(SELECT id FROM sync_outbox), 'no longer wanted')")
    with pytest.raises(Exception) as failed:
        db.run("SELECT sync_outbox_target_drop('y')")
    assert failed.value.sqlstate == "55000" and "public.t" in failed.value.diag.message_detail
    db.attach("t", target="y")
    db.run("SELECT sync_outbox_detach('t'); SELECT sync_outbox_target_drop('y')")


def test_a_call_that_is_refused_uses_up_no_target_id(db):
    admin = db.session(user=db.role("admin", "sync_outbox_admin"))
    admin.execute("""DO $$ BEGIN FOR i IN 1..33000 LOOP
        BEGIN PERFORM sync_outbox_target_set('x', '{"base_url": "nonsense"}'); EXCEPTION WHEN OTHERS THEN NULL; END;
        END LOOP; END $$""")
    db.run("""SELECT sync_outbox_target_set('second', '{"base_url": "https://hub.example.org"}')""")
