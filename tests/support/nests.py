"""Random statements on one table whose triggers and functions write to it again: what the property of order is tried on.

All of it is PL/pgSQL: the table's triggers carry out what they are told in the table `plan`, by the number of the row that
fires them, each of them once. Everything follows from the seed."""

import json

KEYS = range(1, 9)

# How the attached table is made; the key, and what a row of key k and value v is.
SHAPES = {
    "plain": "CREATE TABLE t (id int PRIMARY KEY, v int, w text)",
    "dropped": "CREATE TABLE t (gone int, id int PRIMARY KEY, gone2 text, v int, w text); "
               "ALTER TABLE t DROP gone; ALTER TABLE t DROP gone2",
    "partitioned": "CREATE TABLE t (id int PRIMARY KEY, v int, w text) PARTITION BY RANGE (id); "
                   "CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (MINVALUE) TO (4); "
                   "CREATE TABLE t_high (w text, gone int, v int, id int NOT NULL); ALTER TABLE t_high DROP gone; "
                   "ALTER TABLE t ATTACH PARTITION t_high FOR VALUES FROM (4) TO (MAXVALUE)",
}

TRIGGERS = ("BEFORE INSERT", "BEFORE UPDATE", "BEFORE DELETE", "AFTER INSERT", "AFTER UPDATE", "AFTER DELETE")

PREPARE = """
    CREATE TABLE kid (n serial PRIMARY KEY, id int UNIQUE, parent int REFERENCES t ON UPDATE CASCADE ON DELETE CASCADE, v int);
    CREATE TABLE plan (n serial PRIMARY KEY, at text, id int, done boolean DEFAULT false, statement text);
    CREATE TABLE log (n int);

    -- One statement of the plan, if any is left for this event and row. What it may not do (a key that is taken, a row that
    -- its own statement has changed) is taken back, like everything it did.
    CREATE FUNCTION carry_out(event text, row_id int) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        todo plan;
    BEGIN
        IF pg_trigger_depth() > 4 THEN RETURN; END IF;
        FOR todo IN UPDATE plan SET done = true WHERE n IN (SELECT n FROM plan WHERE NOT done AND at = event
                AND (id IS NULL OR id = row_id) ORDER BY n LIMIT 2) RETURNING * LOOP
            BEGIN
                EXECUTE todo.statement;
            EXCEPTION WHEN unique_violation OR triggered_data_change_violation OR raise_exception OR cardinality_violation
                OR foreign_key_violation THEN NULL;
            END;
        END LOOP;
    END $$;

    CREATE FUNCTION call(row_id int) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN PERFORM carry_out('call', row_id); RETURN row_id; END $$;

    CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM carry_out(TG_ARGV[0], CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END);
        RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    END $$;
"""


def prepare(database, shape, **attach):
    """The table, attached, with its triggers."""
    database.run("SET client_min_messages = error")
    database.run(SHAPES[shape])
    database.run(PREPARE)
    database.attach("t", **attach)
    for number, when in enumerate(TRIGGERS):
        database.run(f"CREATE TRIGGER tell_{number} {when} ON t FOR EACH ROW EXECUTE FUNCTION fired('{when}')")
    # One that sorts before ours, and one for the end of the transaction, on the leaves if there are any: a partitioned table
    # can have constraint triggers, too.
    database.run("""CREATE TRIGGER "!first" AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION fired('FIRST');
        CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE OR DELETE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            EXECUTE FUNCTION fired('LATE')""")


class Nest:
    """What one seed makes: a transaction's statements, and the plan of what happens inside them."""

    def __init__(self, random):
        self.random = random
        self.value = 0
        self.plan = [(self._event(), random.choice([None, random.choice(KEYS)]), self.statement(inner=True))
                     for _ in range(random.randint(1, 7))]
        self.statements = [self._outer() for _ in range(random.randint(1, 3))]

    def __str__(self):
        return json.dumps({"plan": self.plan, "statements": self.statements}, indent=1)

    def _event(self):
        return self.random.choice([*TRIGGERS, *TRIGGERS, "call", "call", "call", "FIRST", "LATE"])

    def _key(self):
        return self.random.choice(KEYS)

    def _value(self):
        self.value += 1
        return self.value * 10

    def _some(self):
        """A condition on rows."""
        return self.random.choice([f"id = {self._key()}", f"id = {self._key()}", f"id IN ({self._key()}, {self._key()})",
                                   f"id >= {self._key()}", f"id % 2 = {self._key() % 2}", "true"])

    def _changes(self):
        """What an UPDATE sets."""
        away = self.random.choice([f"id = id + {self.random.choice([1, -1, 8, -8, 3])}", f"id = {self._key()}", "id = 9 - id"])
        stays = self.random.choice([f"v = {self._value()}", "v = v + 1", f"w = 'w{self._value()}'", "v = v",
                                    f"v = {self._value()}, w = w || '!'"])
        return self.random.choice([stays, stays, away, f"{away}, v = {self._value()}"])

    def _rows(self):
        keys = self.random.sample(KEYS, self.random.randint(1, 3))
        return ", ".join(f"({key}, {self._value()}, 'n')" for key in keys)

    def write(self):
        """One statement that writes."""
        conflict = self.random.choice(["", " ON CONFLICT DO NOTHING", f" ON CONFLICT (id) DO UPDATE SET v = {self._value()}",
                                       " ON CONFLICT (id) DO UPDATE SET v = t.v + excluded.v"])
        return self.random.choice([
            lambda: f"INSERT INTO t (id, v, w) VALUES {self._rows()}{conflict}",
            lambda: f"INSERT INTO t (id, v, w) VALUES {self._rows()}{conflict}",
            lambda: f"UPDATE t SET {self._changes()} WHERE {self._some()}",
            lambda: f"UPDATE t SET {self._changes()} WHERE {self._some()}",
            lambda: f"UPDATE t SET {self._changes()} WHERE {self._some()}",
            lambda: f"DELETE FROM t WHERE {self._some()}",
            lambda: self._merge(),
        ])()

    def _insert(self):
        return f"INSERT INTO t (id, v, w) VALUES {self._rows()} ON CONFLICT DO NOTHING"

    def _merge(self):
        return (f"MERGE INTO t USING (VALUES {self._rows()}) AS s (id, v, w) ON t.id = s.id "
                f"WHEN MATCHED AND s.id % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v "
                "WHEN NOT MATCHED THEN INSERT (id, v, w) VALUES (s.id, s.v, s.w)")

    def statement(self, inner=False):
        """A statement, which may write in several places."""
        returning = " RETURNING t.id" if "MERGE" not in (write := self.write()) else ""
        simple = [lambda: write, lambda: write]
        with_result = [
            lambda: f"WITH x AS ({write}{returning}) SELECT call(id) FROM x",
            lambda: f"{write} RETURNING call(t.id)",
            lambda: f"WITH x AS ({write}{returning}), y AS ({self._insert()}) SELECT call(id) FROM x",
            lambda: f"WITH x AS ({write}{returning}) INSERT INTO log SELECT call(id) FROM x",
            lambda: f"WITH x AS ({write}{returning}) UPDATE t SET v = v + call(t.id) FROM x WHERE t.id <> x.id",
        ]
        calls = [
            lambda: f"SELECT call({self._key()})", lambda: f"INSERT INTO log SELECT call(n) FROM generate_series(1, 3) n",
            lambda: f"UPDATE t SET v = call(id) WHERE {self._some()}",
            lambda: f"INSERT INTO t (id, v, w) SELECT id, call(id), 'c' FROM (VALUES {self._rows()}) r (id, v, w)",
        ]
        kids = [
            lambda: f"INSERT INTO kid (id, parent, v) SELECT id, id, 0 FROM t WHERE {self._some()} ON CONFLICT DO NOTHING",
            lambda: "UPDATE kid SET v = v + 1",
        ]
        made = self.random.choice([*simple, *(with_result if returning else []), *calls, *kids])()
        if inner and self.random.random() < 0.1:
            return f"DO $do$ BEGIN {self.write()}; RAISE EXCEPTION 'taken back'; EXCEPTION WHEN raise_exception THEN NULL; END $do$"
        if inner and self.random.random() < 0.2:
            return f"DO $do$ BEGIN {self.write()}; {self.write()}; END $do$"
        return made

    def _outer(self):
        kind = self.random.random()
        if kind < 0.1:
            return ["COPY", [[key, self._value(), "copied"] for key in self.random.sample(KEYS, self.random.randint(1, 5))]]
        return ["SAVEPOINT" if kind < 0.2 else "EXPLAIN" if kind < 0.25 else "", self.statement()]

    def run(self, database):
        """Runs it in one transaction; what fails is taken back to its savepoint."""
        database.run("DELETE FROM plan; DELETE FROM kid")
        with database.conn.cursor() as cursor:
            cursor.executemany("INSERT INTO plan (at, id, statement) VALUES (%s, %s, %s)", self.plan)
            cursor.execute("BEGIN")
            for how, what in self.statements:
                cursor.execute("SAVEPOINT s")
                try:
                    if how == "COPY":
                        with cursor.copy("COPY t (id, v, w) FROM STDIN") as copy:
                            for row in what:
                                copy.write_row(row)
                    else:
                        cursor.execute(f"EXPLAIN (ANALYZE, COSTS off) {what}" if how == "EXPLAIN" else what)
                    if how == "SAVEPOINT":
                        cursor.execute("ROLLBACK TO s")
                except ACCEPTED:
                    cursor.execute("ROLLBACK TO s")
            try:
                cursor.execute("COMMIT")
            except ACCEPTED:
                pass


def _accepted():
    from psycopg import errors
    return (errors.UniqueViolation, errors.TriggeredDataChangeViolation, errors.CardinalityViolation, errors.RaiseException,
            errors.ForeignKeyViolation, errors.StatementTooComplex)


# What a statement may fail with, because it has no sense itself.
ACCEPTED = _accepted()
