"""Both ways in which a change gets into the outbox, straight into the heap or by INSERT, write the same."""

import datetime

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.plans import modifications

TABLES = """
    CREATE TABLE stock (id int PRIMARY KEY, qty int, store text, note text);
    CREATE TABLE sale (id int, year int, qty numeric, PRIMARY KEY (id, year)) PARTITION BY RANGE (year);
    CREATE TABLE sale_0 PARTITION OF sale FOR VALUES FROM (0) TO (4);
    CREATE TABLE sale_4 (qty numeric, gone int, year int NOT NULL, id int NOT NULL);
    ALTER TABLE sale_4 DROP gone;
    ALTER TABLE sale ATTACH PARTITION sale_4 FOR VALUES FROM (4) TO (8);
    CREATE TABLE event (code text PRIMARY KEY, doc jsonb, secret text);
    -- Statistics of one database alone would let the same statement take its rows in another order.
    ALTER TABLE stock SET (autovacuum_enabled = off);
    ALTER TABLE sale_0 SET (autovacuum_enabled = off);
    ALTER TABLE sale_4 SET (autovacuum_enabled = off);
    ALTER TABLE event SET (autovacuum_enabled = off);

    -- Changes other rows of the statement that fires it: their capture comes too early and is given new ids.
    CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE stock SET qty = qty + 10 WHERE id BETWEEN NEW.id - 1 AND NEW.id + 1; RETURN NULL; END $$;
    CREATE TRIGGER bump AFTER INSERT ON stock FOR EACH ROW WHEN (NEW.qty = 5) EXECUTE FUNCTION bump();
"""
EVERY = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
# The column of an altered outbox, and those of which only the shape can be compared.
INCOMPARABLE = ("txid", "dedup_key", "created_at", "inserted_at")

few = st.integers(0, 7)
words = st.sampled_from(["NULL", "''", "'S1'", "'añejo \"½\"'", "repeat('long ', 3000)",
                         # Does not compress: too large for the page as well.
                         "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) n)"])
spans = st.tuples(few, few).map(sorted)


def statements(pattern, **parts):
    """Statements of this pattern, its parts drawn."""
    return st.fixed_dictionaries(parts).map(lambda drawn: pattern.format(**drawn))


on_stock = st.one_of(
    statements("INSERT INTO stock SELECT n, {qty}, 'S' || n, {note} FROM generate_series({span[0]}, {span[1]}) n",
               span=spans, qty=few, note=words),
    statements("INSERT INTO stock VALUES ({id}, {qty}, {store}, {note}) ON CONFLICT (id) DO UPDATE SET qty = {qty}, note = {note}",
               id=few, qty=few, store=words, note=words),
    statements("INSERT INTO stock SELECT n, {qty} FROM generate_series(0, 7) n ON CONFLICT DO NOTHING", qty=few),
    statements("UPDATE stock SET qty = {qty}, note = {note} WHERE id BETWEEN {span[0]} AND {span[1]}", qty=few, note=words, span=spans),
    statements("UPDATE stock SET store = {store}", store=words),
    statements("UPDATE stock SET id = {to} WHERE id = {id}", id=few, to=few),
    statements("DELETE FROM stock WHERE id BETWEEN {span[0]} AND {span[1]}", span=spans),
    statements("""MERGE INTO stock USING generate_series({span[0]}, {span[1]}) AS wanted ON id = wanted
                  WHEN MATCHED AND qty > {qty} THEN DELETE
                  WHEN MATCHED THEN UPDATE SET qty = {qty}
                  WHEN NOT MATCHED THEN INSERT VALUES (wanted, {qty}, 'new')""", span=spans, qty=few),
    statements("""WITH gone AS (DELETE FROM stock WHERE id < {id} RETURNING *)
                  INSERT INTO sale SELECT id, {id}, qty FROM gone""", id=few),
    st.just("TRUNCATE stock"),
)
on_sale = st.one_of(
    statements("INSERT INTO sale SELECT n, {year}, n / 3.0 FROM generate_series({span[0]}, {span[1]}) n", span=spans, year=few),
    statements("UPDATE sale SET qty = qty * {factor} WHERE id = {id}", factor=few, id=few),
    # Rows move to the other partition, where nothing holds them back.
    statements("UPDATE sale SET year = {year} WHERE id = {id}", year=few, id=few),
    statements("DELETE FROM sale_4 WHERE id > {id}", id=few),
    st.sampled_from(["TRUNCATE sale", "TRUNCATE sale_0", "TRUNCATE stock, sale"]),
)
on_event = st.one_of(
    statements("""INSERT INTO event VALUES ('{id}', '{{"n": [{n}, null]}}', {secret}) ON CONFLICT (code) DO UPDATE
                  SET doc = excluded.doc, secret = excluded.secret""", id=few, n=few, secret=words),
    statements("UPDATE event SET secret = {secret}", secret=words),
    statements("UPDATE event SET code = code || '{id}' WHERE code = '{id}'", id=few),
    statements("DELETE FROM event WHERE code < '{id}'", id=few),
)
copies = st.lists(st.tuples(few, few, st.sampled_from(["S1", "it's\ta \\ tab", None])), max_size=4).map(
    lambda rows: ("COPY stock (id, qty, store) FROM STDIN", rows))
session = st.sampled_from([
    "SET sync_outbox.reason = 'inventory count'", "SET LOCAL sync_outbox.reason = 'añejo'", "RESET sync_outbox.reason",
    "SET TimeZone = 'Asia/Kathmandu'", "SET sync_outbox.capture = off", "SET sync_outbox.capture = on"])
writes = on_stock | on_sale | on_event | copies
some = st.lists(writes | session, max_size=4)


def joined(*parts):
    return st.tuples(*parts).map(lambda lists: [step for steps in lists for step in steps])


def one_of_each(*commands):
    return st.sampled_from([[command] for command in commands])


savepoint = joined(st.just(["SAVEPOINT s"]), some, one_of_each("ROLLBACK TO s", "RELEASE s", "ROLLBACK TO s; SAVEPOINT t"))
transaction = joined(st.just(["BEGIN"]), some, st.just([]) | savepoint, some, one_of_each("COMMIT", "COMMIT", "ROLLBACK"))
steps = st.lists(transaction | some, min_size=3, max_size=12).map(lambda parts: [step for part in parts for step in part])


class Shop:
    """One of the two databases, with a session that writes."""

    def __init__(self, db):
        self.db = db
        db.run(TABLES)
        db.attach("stock", operations=EVERY, branch_column="store", include_old=True)
        db.attach("sale", operations=EVERY, priority="HIGH")
        db.attach("event", exclude=["secret"], priority="LOW")
        self.writer = db.session()

    def clear(self):
        self.writer.execute("ROLLBACK; RESET ALL; SET client_min_messages = error")
        self.db.run("SET sync_outbox.capture = off; TRUNCATE stock, sale, event; TRUNCATE sync_outbox RESTART IDENTITY")
        self.db.run("INSERT INTO stock SELECT n, n, 'S' || n FROM generate_series(0, 3) n; INSERT INTO sale SELECT n, n, n FROM"
                    " generate_series(0, 7) n; INSERT INTO event SELECT n FROM generate_series(0, 3) n")

    def take(self, step):
        """Returns what became of it: the SQLSTATE of its error, or how many rows it says it wrote."""
        try:
            if isinstance(step, str):
                return self.writer.execute(step).rowcount
            command, rows = step
            with self.writer.cursor() as cursor:
                with cursor.copy(command) as copy:
                    for row in rows:
                        copy.write_row(row)
                return cursor.rowcount
        except psycopg.Error as error:
            return error.sqlstate

    def outbox(self):
        """The changes by id, JSON as text, and their txids replaced by which of the changes share one."""
        rows = self.db.rows("SELECT *, pk::text AS pk_text, data::text AS data_text, old::text AS old_text FROM sync_outbox ORDER BY id")
        transactions = {txid: number for number, txid in enumerate(dict.fromkeys(row.txid for row in rows))}
        return [{name: value for name, value in row._asdict().items() if name not in INCOMPARABLE}
                | {"transaction": transactions[row.txid]} for row in rows]

    def check_shapes(self):
        rows = self.db.rows("SELECT dedup_key, created_at, now() - created_at AS age FROM sync_outbox ORDER BY id")
        assert len({row.dedup_key for row in rows}) == len(rows)
        assert all(row.dedup_key.version == 7 for row in rows)
        assert all(datetime.timedelta(0) <= row.age < datetime.timedelta(minutes=1) for row in rows)

    def check_index(self):
        """Every row of the outbox has its index entries."""
        self.db.rows("SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = 'sync_outbox'::regclass")


@pytest.fixture
def another(quiet_server):
    """A second database, on the server of `db`."""
    database = quiet_server.create_database()
    database.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    yield database
    database.close()
    quiet_server.drop_database(database.name)


@pytest.fixture
def shops(db, another):
    shops = Shop(db), Shop(another.alter_outbox())
    for shop in shops:
        shop.db.create_extension("amcheck")
    return shops


@settings(max_examples=80, deadline=None, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])
@given(steps)
def test_both_ways_write_the_same(shops, steps):
    direct, altered = shops
    for shop in shops:
        shop.clear()
    for step in steps:
        assert direct.take(step) == altered.take(step), step
    for shop in shops:
        shop.take("COMMIT")

    assert direct.outbox() == altered.outbox()
    for shop in shops:
        shop.check_shapes()
        shop.check_index()


def test_an_outbox_as_it_was_made_is_appended_to_directly(sales):
    assert modifications(sales, "INSERT INTO sales VALUES (1), (2)", "Insert") == 0
    assert len(sales.outbox()) == 2


def test_an_altered_outbox_is_written_by_insert(sales):
    sales.alter_outbox()

    assert modifications(sales, "INSERT INTO sales VALUES (1), (2)", "Insert") == 2
    assert sales.value("SELECT count(inserted_at) FROM sync_outbox") == 2


def test_an_outbox_that_had_another_column_once_is_written_by_insert(sales):
    """A dropped column keeps its place in a row, so that a row of the columns that are left is none of the table's."""
    sales.run("ALTER TABLE sync_outbox ADD note text; ALTER TABLE sync_outbox DROP note")

    assert modifications(sales, "INSERT INTO sales VALUES (1, 1), (2, 2)", "Insert") == 2
    assert [(change.pk, change.data) for change in sales.outbox()] == [
        ({"id": id}, {"id": id, "qty": id, "note": None}) for id in (1, 2)]
    assert sales.flushed()["acked"] == 2
