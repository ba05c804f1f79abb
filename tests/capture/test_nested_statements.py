"""Order inside one statement: triggers and functions that write to the table whose statement has not ended.

Whatever they do, the changes applied in the order of their ids give the table, and each of them can be applied."""

import contextlib

import pytest
from psycopg import errors

from support.replay import replay, rows


class Nest:
    """A table whose changes are replayed."""

    def __init__(self, db, table="t", key=("id",)):
        self.db, self.table, self.key = db, table, key
        self.before = {}

    def __getattr__(self, name):
        return getattr(self.db, name)

    def begin(self):
        """From here on."""
        self.before = rows(self.db, self.table, self.key)
        self.run("DELETE FROM sync_outbox")

    def function(self, body, name="f", arguments="i int", returns="int"):
        self.run(f"CREATE FUNCTION {name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS $$ BEGIN {body} END $$")

    def trigger(self, when, body, name="nested"):
        """A row trigger that does nothing when it is fired by what a trigger does."""
        row = "OLD" if "BEFORE DELETE" in when else "NEW"
        self.run(f"""CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF pg_trigger_depth() = 1 THEN {body} END IF; RETURN {row}; END $$;
            CREATE TRIGGER {name} {when} ON {self.table} FOR EACH ROW EXECUTE FUNCTION {name}()""")

    def converges(self):
        """The changes, which give the table."""
        changes = self.outbox(f"table_name = '{self.table}'")
        assert replay(changes, self.before) == rows(self.db, self.table, self.key), changes
        return [(change.op, change.pk, change.data) for change in changes]


@pytest.fixture
def db(db, append):
    return append(db)


@pytest.fixture
def t(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int, w text)")
    db.attach("t")
    db.run("INSERT INTO t SELECT n, n, 'seed ' || n FROM generate_series(1, 4) n")
    nest = Nest(db)
    nest.begin()
    return nest


# The cases of defect 2

def test_defect_02_a_key_that_is_deleted_and_inserted_again_by_a_cte(t):
    t.function("INSERT INTO t VALUES (i, 0, 'again'); RETURN i;", "reinsert")
    t.run("WITH d AS (DELETE FROM t WHERE id = 1 RETURNING id) SELECT reinsert(id) FROM d")

    assert t.converges()[-1][0] == "INSERT"


def test_defect_02_a_trigger_on_delete_inserts_the_next_row_of_its_statement(t):
    t.trigger("AFTER DELETE", "IF OLD.id = 1 THEN INSERT INTO t VALUES (2, 0, 'again'); END IF;")
    t.run("DELETE FROM t WHERE id IN (1, 2)")

    assert {pk["id"] for _, pk, _ in t.converges()} == {1, 2}


def test_defect_02_keys_move_on_and_an_old_one_is_inserted(t):
    t.trigger("AFTER UPDATE", "IF OLD.id = 1 THEN INSERT INTO t VALUES (2, 0, 'again'); END IF;")
    t.run("UPDATE t SET id = id + 10")
    t.converges()


def test_defect_02_a_trigger_before_insert_deletes_the_key_first(t):
    t.trigger("BEFORE INSERT", "DELETE FROM t WHERE id = NEW.id; UPDATE t SET v = v + 1 WHERE id = 10;")
    t.trigger("AFTER INSERT", "UPDATE t SET v = v + 1 WHERE id = NEW.id;", "later")
    t.run("INSERT INTO t VALUES (10, 10, 'x'), (2, 20, 'y'), (10, 30, 'z')")
    t.converges()


def test_defect_02_a_row_moves_away_and_another_takes_its_key(t):
    t.trigger("AFTER UPDATE", "IF NEW.id = 1 THEN UPDATE t SET id = 12 WHERE id = 2; INSERT INTO t VALUES (2, 0, 'taken'); END IF;")
    t.run("UPDATE t SET v = v + 100")
    t.converges()


# What a weaker rule gets wrong

def test_defect_02_a_function_moves_the_row_that_a_cte_has_updated(t):
    t.function("UPDATE t SET id = 6 WHERE id = 4; RETURN i;")
    t.run("WITH u AS (UPDATE t SET v = 12 WHERE id = 4 RETURNING id) SELECT f(id) FROM u")

    assert ("INSERT", {"id": 6}, {"id": 6, "v": 12, "w": "seed 4"}) in t.converges()


def test_defect_02_a_trigger_updates_the_next_row_before_it_was_told(t):
    t.trigger("AFTER INSERT", "UPDATE t SET v = v + 1 WHERE id = NEW.id + 1;")
    t.run("INSERT INTO t SELECT n, n FROM generate_series(10, 20) n")
    t.converges()


def test_defect_02_a_row_moves_to_the_key_that_its_outer_statement_is_leaving(t):
    t.function("UPDATE t SET id = 1 WHERE id = 2; RETURN i;")
    t.run("WITH u AS (UPDATE t SET id = 11 WHERE id = 1 RETURNING id) SELECT f(id) FROM u")
    t.converges()


@pytest.fixture
def watched_t(t):
    """The old values go with the changes."""
    t.run("SELECT sync_outbox_attach('t', include_old => true)")
    return t


def test_defect_02_old_values_that_nobody_was_told(watched_t):
    t = watched_t
    t.trigger("AFTER UPDATE", "UPDATE t SET v = v + 1 WHERE id = NEW.id % 4 + 1;")
    t.run("UPDATE t SET v = v * 10")
    t.converges()


def test_defect_02_an_inner_delete_of_what_nobody_was_told(watched_t):
    t = watched_t
    t.trigger("AFTER UPDATE", "DELETE FROM t WHERE id = NEW.id + 1;")
    t.run("UPDATE t SET v = v * 10")

    assert all(change.old is None for change in t.outbox("op = 'DELETE'"))
    t.converges()


# What is told as it is

def test_changes_that_nothing_has_overtaken_are_told_as_they_are(t):
    t.run("""DO $$ BEGIN INSERT INTO t VALUES (9, 1, 'x'); UPDATE t SET v = 2 WHERE id = 9; UPDATE t SET id = 10 WHERE id = 9;
        DELETE FROM t WHERE id = 10; END $$""")

    assert t.converges() == [
        ("INSERT", {"id": 9}, {"id": 9, "v": 1, "w": "x"}), ("UPDATE", {"id": 9}, {"v": 2}),
        ("UPDATE", {"id": 9}, {"id": 10}), ("DELETE", {"id": 10}, None)]


def test_other_tables_do_not_matter(t):
    t.run("CREATE TABLE log (id int PRIMARY KEY, n int); SELECT sync_outbox_attach('log')")
    t.run("INSERT INTO log VALUES (0, 0); DELETE FROM sync_outbox")
    t.trigger("AFTER UPDATE OR DELETE", "INSERT INTO log VALUES (OLD.id, 1) ON CONFLICT DO NOTHING; UPDATE log SET n = n + 1 WHERE id = 0;")
    t.run("UPDATE t SET v = v + 1; UPDATE t SET id = id + 100 WHERE id = 4; DELETE FROM t")

    assert [op for op, _, _ in t.converges()] == ["UPDATE"] * 4 + ["UPDATE"] + ["DELETE"] * 4


def test_a_row_that_nobody_touches_but_the_outer_statement_is_told_as_it_is(t):
    t.trigger("AFTER UPDATE", "UPDATE t SET v = 0 WHERE id = 4;")
    t.run("UPDATE t SET v = v + 1 WHERE id < 4")

    assert [change for change in t.converges() if change[1]["id"] < 4] == [
        ("UPDATE", {"id": n}, {"v": n + 1}) for n in (1, 2, 3)]


@pytest.mark.parametrize("begin", ["", "BEGIN; INSERT INTO t VALUES (20, 0, 'first'); "], ids=["alone", "in a transaction"])
def test_a_session_that_loads_the_library_with_its_first_change(t, begin):
    """What was going on before the library was loaded is not known: what could be wrong is told by state."""
    t.function("UPDATE t SET id = 1 WHERE id = 2; RETURN i;")
    with t.session() as other:
        other.execute(f"{begin}WITH u AS (UPDATE t SET id = 11 WHERE id = 1 RETURNING id) SELECT f(id) FROM u; COMMIT")
    t.converges()


def test_a_session_that_loads_the_library_is_at_home_with_the_next_statement(t):
    with t.session(autocommit=False) as other:
        other.execute("INSERT INTO t VALUES (9, 1, 'x')")
        other.execute("UPDATE t SET v = 2 WHERE id = 9")
        other.execute("UPDATE t SET id = 10 WHERE id = 9")

    assert t.converges()[1:] == [("UPDATE", {"id": 9}, {"v": 2}), ("UPDATE", {"id": 9}, {"id": 10})]


# Kinds of statements

def test_copy_is_a_statement_too(t):
    t.trigger("BEFORE INSERT", "UPDATE t SET v = v + 1 WHERE id = NEW.id - 1; DELETE FROM t WHERE id = NEW.id;")
    t.trigger("AFTER INSERT", "UPDATE t SET v = v + 1 WHERE id = NEW.id + 1;", "later")
    with t.conn.cursor().copy("COPY t FROM STDIN") as copy:
        for n in (3, 4, 5, 6, 7, 5):
            copy.write_row((n, n, f"copied {n}"))
    t.converges()


def test_rows_that_copy_freezes(t):
    with t.conn.transaction():
        t.run("TRUNCATE t")
        t.run("ALTER TABLE t DISABLE TRIGGER ALL; ALTER TABLE t ENABLE TRIGGER \"!sync_outbox_row\"")
        t.trigger("AFTER INSERT", "UPDATE t SET v = v + 1 WHERE id = NEW.id + 1; DELETE FROM t WHERE id = NEW.id + 2;")
        with t.conn.cursor().copy("COPY t FROM STDIN (FREEZE)") as copy:
            for n in range(20, 29):
                copy.write_row((n, n, f"frozen {n}"))
    t.before = {}
    t.converges()


def test_merge_and_on_conflict(t):
    t.trigger("AFTER INSERT OR UPDATE", "UPDATE t SET v = v + 1 WHERE id = NEW.id % 6 + 1; DELETE FROM t WHERE id = NEW.id + 2;")
    t.run("INSERT INTO t SELECT n, -n, 'upsert' FROM generate_series(1, 6) n ON CONFLICT (id) DO UPDATE SET v = excluded.v")
    t.run("""MERGE INTO t USING generate_series(1, 8) n ON t.id = n WHEN MATCHED AND n % 3 = 0 THEN DELETE
        WHEN MATCHED THEN UPDATE SET v = n * 100 WHEN NOT MATCHED THEN INSERT VALUES (n, n, 'merged')""")
    t.converges()


def test_a_nested_statement_that_is_rolled_back(t):
    t.trigger("AFTER UPDATE", """BEGIN UPDATE t SET v = -1 WHERE id = NEW.id + 1; UPDATE t SET id = NEW.id + 50 WHERE id = NEW.id;
        PERFORM 1 / (NEW.id - 2); EXCEPTION WHEN division_by_zero THEN NULL; END;""")
    t.run("UPDATE t SET v = v + 10 WHERE id < 4")
    t.converges()


def test_after_an_error_the_next_statement_knows_what_is_open(t):
    """Queries that failed have not finished; they are gone with their transaction or savepoint."""
    t.function("PERFORM 1 / 0; RETURN i;", "fail")
    with pytest.raises(errors.DivisionByZero):
        t.run("UPDATE t SET v = fail(1)")
    with t.conn.transaction():
        t.run("INSERT INTO t VALUES (9, 0, 'x')")
        with contextlib.suppress(errors.DivisionByZero), t.conn.transaction():
            t.run("UPDATE t SET v = fail(1)")
        t.run("UPDATE t SET v = 1 WHERE id = 9")
        t.run("UPDATE t SET id = 10 WHERE id = 9")

    assert t.converges()[1:] == [("UPDATE", {"id": 9}, {"v": 1}), ("UPDATE", {"id": 9}, {"id": 10})]


def test_what_is_only_explained_is_not_open(t):
    with t.conn.transaction():
        t.run("INSERT INTO t VALUES (9, 0, 'x')")
        t.run("EXPLAIN UPDATE t SET v = 1")
        t.run("EXPLAIN ANALYZE UPDATE t SET v = 1 WHERE id = 9")
        t.run("UPDATE t SET id = 10 WHERE id = 9")

    assert t.converges()[1:] == [("UPDATE", {"id": 9}, {"v": 1}), ("UPDATE", {"id": 9}, {"id": 10})]


def test_loops_over_what_was_written(t):
    t.run("""CREATE FUNCTION each() RETURNS void LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN
        FOR r IN UPDATE t SET v = v + 1 RETURNING * LOOP
            UPDATE t SET v = v + 10 WHERE id = r.id; UPDATE t SET id = r.id + 20 WHERE id = r.id; EXIT WHEN r.id = 3;
        END LOOP; END $$""")
    t.run("SELECT each()")

    assert {op for op, _, _ in t.converges()} == {"UPDATE"}


def test_a_cursor_that_is_left_open(t):
    with t.conn.transaction():
        t.run("DECLARE c CURSOR FOR SELECT * FROM t FOR UPDATE; FETCH 1 FROM c")
        t.run("UPDATE t SET v = 100 WHERE CURRENT OF c")
        t.run("UPDATE t SET id = 9 WHERE id = 1")

    assert t.converges() == [("UPDATE", {"id": 1}, {"v": 100}), ("UPDATE", {"id": 1}, {"id": 9})]


def test_rules_make_several_statements_of_one(t):
    t.run("""CREATE VIEW u AS SELECT * FROM t; CREATE RULE moves AS ON UPDATE TO u DO INSTEAD (
        DELETE FROM t WHERE id = OLD.id; INSERT INTO t VALUES (NEW.id, NEW.v, 'ruled');
        UPDATE t SET id = NEW.id + 30 WHERE id = NEW.id)""")
    t.run("UPDATE u SET v = 5 WHERE id = 2")
    t.converges()


def test_deferred_triggers_write_at_commit(t):
    t.run("""CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.v < 100 THEN UPDATE t SET v = 100 + v WHERE id = NEW.id; UPDATE t SET id = id + 50 WHERE id = NEW.id; END IF;
        RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            EXECUTE FUNCTION late()""")
    t.run("UPDATE t SET v = v + 1")

    assert {op for op, _, _ in t.converges()} == {"UPDATE"}


def test_a_trigger_that_sorts_before_ours(t):
    t.trigger("AFTER INSERT OR UPDATE", "UPDATE t SET v = v + 1 WHERE id = NEW.id;", '"!first"')
    t.run("INSERT INTO t VALUES (9, 9, 'x'); UPDATE t SET w = 'y' WHERE id = 9")
    t.converges()


# Referential actions

def test_cascades_with_triggers_on_top(db):
    db.run("""CREATE TABLE t (id int PRIMARY KEY, parent int REFERENCES t ON UPDATE CASCADE ON DELETE SET NULL, v int);
        INSERT INTO t VALUES (1, NULL, 0), (2, 1, 0), (3, 1, 0), (4, 2, 0)""")
    db.attach("t")
    nest = Nest(db)
    nest.begin()
    nest.trigger("AFTER UPDATE", "UPDATE t SET v = v + 1 WHERE id IN (1, 11, 13);")
    db.run("UPDATE t SET id = id + 10")
    db.run("DELETE FROM t WHERE id IN (11, 12)")
    nest.converges()


def test_a_cascade_that_changes_keys(db):
    db.run("""CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY REFERENCES parent ON UPDATE CASCADE, v int);
        INSERT INTO parent VALUES (1), (2), (3); INSERT INTO t VALUES (1, 0), (2, 0), (3, 0)""")
    db.attach("t")
    nest = Nest(db)
    nest.begin()
    db.run("UPDATE parent SET id = id + 10")
    assert [op for op, _, _ in nest.converges()] == ["UPDATE"] * 3

    db.run("""CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF pg_trigger_depth() < 3 THEN UPDATE t SET v = v + 1; END IF; RETURN NULL; END $$;
        CREATE TRIGGER more AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION more()""")
    db.run("UPDATE parent SET id = id + 10")
    nest.converges()
    assert db.value("SELECT min(v) FROM t") > 0


# Partitions

def test_partitions_are_one_table(db):
    db.run("""CREATE TABLE t (id int, part int, v int, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
        CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1);
        CREATE TABLE t2 (v int, gone int, part int NOT NULL, id int NOT NULL); ALTER TABLE t2 DROP gone;
        ALTER TABLE t ATTACH PARTITION t2 FOR VALUES IN (2)""")
    db.attach("t")
    db.run("INSERT INTO t SELECT n, n % 2 + 1, 0 FROM generate_series(1, 6) n")
    nest = Nest(db, key=("id", "part"))
    nest.begin()
    # A row that moves fires no trigger ON UPDATE.
    nest.trigger("AFTER INSERT OR UPDATE OR DELETE", """IF TG_OP = 'DELETE' THEN INSERT INTO t VALUES (OLD.id, OLD.part, -1);
        ELSE UPDATE t SET part = 3 - part WHERE id = NEW.id + 1; UPDATE t SET v = v + 1 WHERE id = NEW.id; END IF;""")
    db.run("UPDATE t SET part = 3 - part WHERE id = 3")
    db.run("UPDATE t SET v = v + 1 WHERE id < 2; DELETE FROM t WHERE id = 2 AND part = 1; INSERT INTO t VALUES (9, 1, 0), (8, 1, 0)")

    assert {change.table_name for change in db.outbox()} == {"t"}
    nest.converges()


def test_a_key_that_is_not_the_primary_key(db):
    db.run("""CREATE TABLE t (n serial PRIMARY KEY, b text COLLATE "C" NOT NULL, v int, a numeric NOT NULL);
        CREATE UNIQUE INDEX ON t (a, b) INCLUDE (v)""")
    db.attach("t", key_columns=["b", "a"], columns=["v"])
    db.run("INSERT INTO t (a, b, v) VALUES (1, 'x', 0), (1, 'y', 0), (2, 'x', 0)")
    nest = Nest(db, "t", ("b", "a"))
    nest.before = replay(db.outbox())
    db.run("DELETE FROM sync_outbox")
    nest.trigger("AFTER UPDATE", "UPDATE t SET v = v + 1, a = a + 1.5 WHERE b = NEW.b AND a = NEW.a + 1;")
    db.run("UPDATE t SET v = v + 1")

    told = replay(db.outbox(), nest.before)
    assert list(told.values()) != [] and sorted(map(str, told.values())) == sorted(
        str(row) for (row,) in db.rows("SELECT json_build_object('b', b, 'v', v, 'a', a) FROM t"))


# What was asked for at attach

def test_branch_and_reason_of_what_is_told_by_state(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int, shop text)")
    db.attach("t", branch_column="shop", require_reason=True, exclude=["v"])
    db.run("SET sync_outbox.reason = 'a test of it'")
    nest = Nest(db)
    nest.trigger("AFTER INSERT", "UPDATE t SET shop = 'S2' WHERE id = NEW.id + 1; DELETE FROM t WHERE id = NEW.id - 1;")
    db.run("INSERT INTO t VALUES (1, 1, 'S1'), (2, 2, 'S1'), (3, 3, 'S1')")

    changes = db.outbox()
    assert {change.reason for change in changes} == {"a test of it"}
    assert {change.op: change.branch for change in changes} == {"INSERT": "S2", "DELETE": "S2"}
    assert [*replay(changes).values()] == [{"id": 3, "shop": "S2"}]


@pytest.mark.parametrize("operations, expected", [
    (["INSERT"], ["INSERT"]), (["DELETE"], ["DELETE"]), (["UPDATE"], ["UPDATE"]),
    (["INSERT", "UPDATE"], ["INSERT", "UPDATE"]), (["UPDATE", "DELETE"], ["UPDATE", "DELETE"])])
def test_no_operation_is_told_that_nobody_asked_for(t, operations, expected):
    t.attach("t", operations=operations)
    t.trigger("AFTER INSERT OR UPDATE OR DELETE", """UPDATE t SET v = v + 1 WHERE id = OLD.id + 1 OR id = NEW.id + 1;
        DELETE FROM t WHERE id = NEW.id + 2; IF OLD.id > 0 THEN INSERT INTO t VALUES (OLD.id, -1, 'again') ON CONFLICT DO NOTHING; END IF;""")
    t.run("UPDATE t SET v = v * 10; DELETE FROM t; INSERT INTO t SELECT n FROM generate_series(21, 29) n")
    told = [op for op, _, _ in t.changes()]

    assert told and set(told) <= set(expected)


def test_an_insert_is_told_where_deletions_are_not(t):
    """Who asked for INSERT alone keeps every row that there ever was."""
    t.attach("t", operations=["INSERT"])
    t.trigger("AFTER INSERT", "DELETE FROM t WHERE id >= 20;")
    t.run("INSERT INTO t VALUES (20, 0, 'x'), (21, 0, 'y')")

    assert [(op, pk["id"]) for op, pk, _ in t.changes()] == [("INSERT", 20), ("INSERT", 21)]


def test_a_change_of_key_frees_the_old_one_whatever_was_asked_for(t):
    t.attach("t", operations=["UPDATE"])
    t.function("UPDATE t SET id = id + 20 WHERE id = i; RETURN i;")
    t.run("WITH u AS (UPDATE t SET v = 5 WHERE id = 1 RETURNING id) SELECT f(id) FROM u")
    t.converges()


# Other encodings

@pytest.mark.parametrize("altered", [False, True], ids=["direct", "altered"])
def test_defect_02_text_that_is_not_ascii_in_another_encoding(quiet_server, watched, altered):
    db = watched(quiet_server).create_database("TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        db.run("SET client_encoding = 'UTF8'; SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
        if altered:
            db.alter_outbox()
        db.run('CREATE TABLE "año" ("clé" text PRIMARY KEY, "größe" text)')
        db.attach('"año"')
        nest = Nest(db, '"año"', ("clé",))
        nest.trigger("AFTER INSERT OR UPDATE", """UPDATE "año" SET "größe" = 'à' || "größe" WHERE "clé" > NEW."clé";
            UPDATE "año" SET "clé" = 'ÿ' || "clé" WHERE "clé" = 'ñandú'; DELETE FROM "año" WHERE "größe" LIKE 'àà%';""")
        db.run("""INSERT INTO "año" VALUES ('é', 'ß'), ('ñandú', 'ü'), ('ö', '¿')""")
        db.run("""UPDATE "año" SET "größe" = "größe" || '§'""")

        assert replay(db.outbox()) == rows(db, '"año"', ("clé",)) != {}
    finally:
        db.close()
        quiet_server.drop_database(db.name)


# Defect 3

def _rows_read(database, statement):
    """How many rows of the table and of the outbox it reads: the measure of its work that does not depend on who else works."""
    with database.conn.transaction():
        database.run(statement)
        return database.value("""SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int FROM pg_stat_xact_user_tables
            WHERE relname IN ('t', 'sync_outbox')""")


@pytest.mark.parametrize("what", ["INSERT INTO t SELECT n, n FROM generate_series({}, {}) n",
                                  "WITH x AS (INSERT INTO t SELECT n, n FROM generate_series({}, {}) n RETURNING id) SELECT f(id) FROM x"],
                         ids=["trigger", "function"])
def test_defect_03_nested_changes_take_linear_time(t, what):
    t.trigger("AFTER INSERT", "UPDATE t SET v = v + 1 WHERE id = NEW.id + 1;")
    t.function("UPDATE t SET id = -i WHERE id = i; RETURN i;")
    few = _rows_read(t, what.format(1_001, 1_500))
    many = _rows_read(t, what.format(2_001, 4_000))

    assert many < 6 * few
    t.converges()


def test_defect_03_twenty_thousand_nested_changes(t, clock):
    t.trigger("AFTER INSERT", "UPDATE t SET v = v + 1 WHERE id = NEW.id + 1;")
    with clock(60):
        t.run("INSERT INTO t SELECT n, n FROM generate_series(10001, 30000) n")
    t.converges()


def test_states_of_partitions_whose_columns_stand_elsewhere(db):
    """A state is read through the index of the partition in which a key is, whatever order its columns have there."""
    db.run("""CREATE DOMAIN area AS text;
        CREATE TABLE p (id bigint, region area, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
        CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a');
        CREATE TABLE p_b (gone int, v int, region area NOT NULL, gone2 text, id bigint NOT NULL);
        ALTER TABLE p_b DROP gone, DROP gone2;
        ALTER TABLE p ATTACH PARTITION p_b FOR VALUES IN ('b');
        CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF new.v < 3 THEN UPDATE p SET v = v + 1, region = CASE region WHEN 'a' THEN 'b' ELSE 'a' END WHERE id = new.id; END IF;
            RETURN NULL; END $$;
        CREATE TRIGGER a_first AFTER INSERT OR UPDATE ON p FOR EACH ROW EXECUTE FUNCTION again();
        CREATE TRIGGER " first" AFTER INSERT OR UPDATE ON p FOR EACH ROW EXECUTE FUNCTION again()""")
    db.attach("p")
    db.run("INSERT INTO p SELECT n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, n % 3 FROM generate_series(1, 20) n")
    db.run("UPDATE p SET region = CASE region WHEN 'a' THEN 'b' ELSE 'a' END, v = 0 WHERE id % 4 = 0")
    db.run("UPDATE p_b SET v = 1; WITH d AS (DELETE FROM p WHERE id < 6 RETURNING *) INSERT INTO p SELECT id + 100, region, 2 FROM d")
    state = {}
    for op, pk, data in db.changes():
        key = (pk["id"], pk["region"])
        if op == "INSERT":
            state[key] = data["v"]
        elif op == "UPDATE":
            row = {**pk, "v": state.pop(key), **data}
            state[row["id"], row["region"]] = row["v"]
        else:
            state.pop(key, None)
    assert state == {(row.id, row.region): row.v for row in db.rows("SELECT id, region, v FROM p")}
