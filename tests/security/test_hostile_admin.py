"""An admin of the extension, or the owner of a table or cast, wants to be more, or to harm others."""

import pytest
from psycopg import errors


def test_a_cast_that_is_no_longer_a_superusers_does_not_run_as_one(db):
    mallory = db.role("mallory")
    db.run("""
        CREATE TYPE colour AS ENUM ('red', 'green');
        CREATE FUNCTION colour_json(colour) RETURNS json SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN RETURN to_json($1::text); END $$;
        CREATE TABLE paint (id int PRIMARY KEY, c colour);
        CREATE CAST (colour AS json) WITH FUNCTION colour_json(colour); GRANT ALL ON paint TO PUBLIC;""")
    db.run(f"GRANT CREATE ON SCHEMA public TO {mallory}")
    db.attach("paint")
    writer = db.session(user=db.role("writer"))
    writer.execute("INSERT INTO paint VALUES (1, 'red')")
    db.run(f"ALTER FUNCTION colour_json(colour) OWNER TO {mallory}")
    db.session(user=mallory).execute(f"""CREATE OR REPLACE FUNCTION colour_json(colour) RETURNS json SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN
        BEGIN EXECUTE 'ALTER ROLE {mallory} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
        RETURN to_json(current_user::text); END $$""")
    assert writer.execute("SELECT $1::text FROM (VALUES (1)) v".replace("$1::text", "'red'::colour::json::text")).fetchone()[0] == f'"{mallory}"'
    writer.execute("INSERT INTO paint VALUES (2, 'red')")
    assert not db.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [mallory])
    assert db.changes()[1][2]["c"] == mallory


def test_who_administers_forges_no_changes_of_other_peoples_tables(db):
    mallory = db.role("mallory", "sync_outbox_admin")
    db.run("CREATE TABLE payroll (id int PRIMARY KEY, salary int)")
    db.attach("payroll")
    db.run(f"CREATE SCHEMA evil AUTHORIZATION {mallory}")
    his = db.session(user=mallory)
    his.execute("""CREATE TABLE evil.old (id bigint, schema_name text, table_name text, op text, pk json, data json);
        INSERT INTO evil.old VALUES (1, 'public', 'payroll', 'UPDATE', '{"id": 1}', '{"salary": 1000000}')""")
    with pytest.raises(errors.InsufficientPrivilege):
        his.execute("SELECT sync_outbox_import('evil.old')")
    assert db.changes() == []


def test_who_imports_a_table_of_his_own_does_not_stop_other_writers(db):
    mallory = db.role("mallory", "sync_outbox_admin")
    db.run("CREATE TABLE sales (id int PRIMARY KEY)")
    db.attach("sales")
    db.run(f"CREATE SCHEMA evil AUTHORIZATION {mallory}")
    his = db.session(user=mallory)
    his.execute("""
        CREATE SEQUENCE evil.looks;
        CREATE TABLE evil.old (id bigint, schema_name text, table_name text, op text, pk json, data json);
        INSERT INTO evil.old SELECT n, 'evil', 'x', 'INSERT', '{"id": 1}', '{"id": 1}' FROM generate_series(1, 100) n;
        ALTER TABLE evil.old ENABLE ROW LEVEL SECURITY;
        ALTER TABLE evil.old FORCE ROW LEVEL SECURITY;
        CREATE POLICY p ON evil.old USING (id = 100 OR nextval('evil.looks') > 99);""")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="showed more rows"):
        his.execute("SELECT sync_outbox_import('evil.old')")
    db.run("INSERT INTO sales SELECT generate_series(1, 5)")


# A superuser who backfills or administers somebody else's table

def test_a_hostile_owner_of_a_table_that_a_superuser_backfills(db):
    """Planning the caller's query folds an index predicate of the owner's, as the caller."""
    eve = db.role("eve")
    db.run(f"GRANT CREATE, USAGE ON SCHEMA public TO {eve}")
    hers = db.session(user=eve)
    hers.execute("""CREATE TABLE e (id int PRIMARY KEY, v int);
        CREATE FUNCTION evil(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
            BEGIN
                IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN RAISE EXCEPTION 'as a superuser'; END IF;
                RETURN 1;
            END $$;
        CREATE INDEX e_evil ON e (v) WHERE v > evil(1)""")
    db.attach("e")
    hers.execute("INSERT INTO e VALUES (1, 1)")
    db.run("SELECT sync_outbox_backfill('e')")  # as the owner, not as the superuser


def hostile(db):
    mallory = db.role("mallory", "sync_outbox_admin")
    db.run(f"CREATE SCHEMA evil AUTHORIZATION {mallory}; GRANT USAGE ON SCHEMA evil TO PUBLIC")
    his = db.session(user=mallory)
    his.execute(f"""
        CREATE FUNCTION evil.spoil() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            BEGIN EXECUTE 'ALTER ROLE {mallory} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1; END $$;
        CREATE FUNCTION evil.one(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN evil.spoil(); END $$;
        CREATE TABLE evil.t (id int PRIMARY KEY, v int)""")
    return his, lambda: db.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [mallory])


def test_an_index_of_a_hostile_owner_does_not_run_as_the_superuser_who_backfills(db):
    his, is_super = hostile(db)
    his.execute("SELECT sync_outbox_attach('evil.t'); INSERT INTO evil.t VALUES (1, 1)")
    his.execute("CREATE INDEX ON evil.t (id) WHERE v >= evil.one(1)")
    assert not is_super()
    db.run("SELECT sync_outbox_backfill('evil.t')")
    assert not is_super()


def test_a_default_partition_or_check_of_a_hostile_owner_does_not_run_as_the_superuser_who_backfills(db):
    his, is_super = hostile(db)
    his.execute("""CREATE TABLE evil.p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE evil.p1 PARTITION OF evil.p FOR VALUES FROM (1) TO (1000);
        ALTER TABLE evil.p1 ADD CHECK (id < 100000 * evil.one(1));
        SELECT sync_outbox_attach('evil.p'); INSERT INTO evil.p VALUES (1, 1)""")
    assert not is_super()
    db.run("SELECT sync_outbox_backfill('evil.p', 'id < 100')")
    assert not is_super()


@pytest.mark.parametrize("call", ["SELECT sync_outbox_attach('evil.t')", "SELECT sync_outbox_attach('evil.t', priority => 'HIGH'); SELECT sync_outbox_detach('evil.t')",
                                  "SELECT * FROM sync_outbox_stats(); SELECT * FROM sync_outbox_overview(); SELECT * FROM sync_outbox_attached",
                                  "SELECT sync_outbox_accept('evil.t')"])
def test_an_index_of_a_hostile_owner_does_not_run_as_the_superuser_who_administers(db, call):
    his, is_super = hostile(db)
    his.execute("CREATE INDEX ON evil.t (id) WHERE v >= evil.one(1); CREATE UNIQUE INDEX ON evil.t (id) WHERE v >= evil.one(1)")
    assert not is_super()
    db.run(call)
    assert not is_super()
