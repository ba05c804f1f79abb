"""Functions, procedures and COPY that write to the table whose statement has not ended: the order of ids gives the
table."""

from support.replay import replay, rows


def test_a_function_in_an_index_expression_writes(db):
    db.run("""CREATE TABLE t (id int PRIMARY KEY, v int, w int);
        CREATE FUNCTION ix(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN $1; END $$;
        CREATE INDEX ON t (ix(v))""")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1, 1); UPDATE t SET v = 2; DELETE FROM t")
    assert [c.op for c in db.outbox()] == ["INSERT", "UPDATE", "DELETE"]


def test_copy_in_a_function_with_nest(db, tmp_path):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int)")
    db.attach("t")
    db.run("""CREATE FUNCTION nested() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF pg_trigger_depth() = 1 THEN
            UPDATE t SET v = v + 1 WHERE id = NEW.id + 1;
            UPDATE t SET id = id + 100 WHERE id = NEW.id - 1;
            INSERT INTO t VALUES (NEW.id - 1, -1) ON CONFLICT DO NOTHING;
        END IF; RETURN NULL; END $$;
        CREATE TRIGGER nested AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION nested()""")
    with db.conn.cursor().copy("COPY t FROM STDIN") as copy:
        for n in range(1, 50):
            copy.write_row((n, n))
    changes = db.outbox()
    assert replay(changes, {}) == rows(db, "t", ("id",))


def test_a_procedure_that_commits_and_goes_on(db):
    db.run("""CREATE TABLE t (id int PRIMARY KEY, v int);
        CREATE FUNCTION f(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            UPDATE t SET id = id + 10 WHERE id = i; INSERT INTO t VALUES (i, 5); RETURN i; END $$;
        CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN
            FOR i IN 1..3 LOOP
                INSERT INTO t VALUES (i, i); COMMIT;
                BEGIN
                    WITH u AS (UPDATE t SET v = v + 1 WHERE id = i RETURNING id) SELECT f(id) INTO r FROM u;
                    INSERT INTO t VALUES (1, 1);
                EXCEPTION WHEN unique_violation THEN NULL; END;
                WITH d AS (DELETE FROM t WHERE id = i RETURNING id) SELECT f(id) INTO r FROM d;
                ROLLBACK AND CHAIN;
                WITH d AS (DELETE FROM t WHERE id = i RETURNING id) SELECT f(id) INTO r FROM d;
            END LOOP; END $$""")
    db.attach("t")
    fresh = db.session()
    fresh.execute("CALL p()")
    assert replay(db.outbox(), {}) == rows(db, "t", ("id",))


def test_nested_moves_between_partitions(db):
    """Rows move between partitions in a nest, with a default partition and another order of columns."""
    db.run("""CREATE TABLE t (id int, g int, v int, PRIMARY KEY (id, g)) PARTITION BY LIST (g);
        CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); CREATE TABLE td PARTITION OF t DEFAULT""")
    db.attach("t", include_old=True)
    db.run("INSERT INTO t SELECT n, 1, n FROM generate_series(1, 5) n")
    before = rows(db, "t", ("id", "g"))
    db.run("DELETE FROM sync_outbox")
    db.run("""CREATE FUNCTION f(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        UPDATE t SET g = 1 - g + 2 WHERE id = i; UPDATE t SET v = v + 100 WHERE id = i - 1;
        INSERT INTO t VALUES (i + 10, 3, 0) ON CONFLICT (id, g) DO UPDATE SET v = t.v + 1; RETURN i; END $$;
        WITH u AS (UPDATE t SET g = 2, v = v + 1 WHERE id < 4 RETURNING id) SELECT f(id) FROM u;
        WITH d AS (DELETE FROM t WHERE id = 4 RETURNING id) SELECT f(id) FROM d;
        MERGE INTO t USING (VALUES (1, 2), (9, 9)) s (id, g) ON t.id = s.id
            WHEN MATCHED THEN UPDATE SET g = s.g, v = f(7) WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.g, f(5))""")
    changes = db.outbox()
    assert replay(changes, before) == rows(db, "t", ("id", "g")), changes
