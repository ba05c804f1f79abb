"""Captured values are those of to_jsonb(row) under UTC and default output settings, whatever the session has set."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.values import EXTENSIONS, ODD_SETTINGS, PREPARE, TYPES

CALM = {"TimeZone": "UTC", "DateStyle": "ISO", "IntervalStyle": "postgres", "extra_float_digits": "1", "bytea_output": "hex"}
COLUMNS = [f"c{number}" for number in range(len(TYPES))]
PROPERTY = settings(max_examples=150, deadline=None, database=None,
                    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])


def kind_of(column):
    return dict(zip(COLUMNS, (kind for kind, _, _ in TYPES))).get(column)


@pytest.fixture
def db(db, append):
    return append(db)


class Wide:
    """A table with a column of every type, a session that writes and a session that judges."""

    def __init__(self, db):
        db.create_extension(*EXTENSIONS)
        db.run(PREPARE)
        columns = ", ".join(f"{column} {kind}" for column, (kind, _, _) in zip(COLUMNS, TYPES))
        db.run(f"CREATE TABLE wide (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns})")
        db.attach("wide", include_old=True)
        self.writer = db.session()
        self.judge = db.session()
        for name, value in CALM.items():
            self.judge.execute("SELECT set_config(%s, %s, false)", [name, value])

    def odd(self, chosen):
        for name, value in chosen.items():
            self.writer.execute("SELECT set_config(%s, %s, false)", [name, value])

    def insert(self, values):
        """`values` by column; checks and returns the id."""
        parameters = ", ".join(f"%({column})s::{kind}" for column, (kind, _, _) in zip(COLUMNS, TYPES))
        given = {column: values.get(column) for column in COLUMNS}
        row = self.writer.execute(
            f"INSERT INTO wide ({', '.join(COLUMNS)}) VALUES ({parameters}) RETURNING id", given).fetchone().id
        self.check("data", "to_jsonb(wide)", row)
        return row

    def update(self, row, values):
        before = self.json("to_jsonb(wide)", row)
        assignments = ", ".join(f"{column} = %({column})s::{kind_of(column)}" for column in values)
        self.writer.execute(f"UPDATE wide SET {assignments} WHERE id = {row}", values)
        after = self.json("to_jsonb(wide)", row)
        changed = {column for column in after if after[column] != before[column]}
        found = self.judge.execute(
            "SELECT ARRAY(SELECT json_object_keys(data)) AS columns, ARRAY(SELECT json_object_keys(old)) AS old_columns "
            "FROM sync_outbox WHERE op = 'UPDATE'").fetchone()
        captured = set(found.columns) if found else set()
        # More may be there than differs as jsonb: -0.0 written over 0.0 is a change of the bytes.
        assert changed <= captured <= set(values)
        if found:
            pick = f"(SELECT jsonb_object_agg(key, value) FROM jsonb_each(to_jsonb(wide)) WHERE key = ANY ('{{{','.join(captured)}}}'))"
            self.check("data", pick, row, "UPDATE")

    def json(self, expression, row):
        """Each member of a jsonb as text: jsonb's own comparison takes 1.0 for 1."""
        rows = self.judge.execute(
            f"SELECT key, value::text FROM wide, jsonb_each({expression}) WHERE id = {row}").fetchall()
        return dict(rows)

    def check(self, captured, expected, row, op="INSERT"):
        got = self.judge.execute(
            f"SELECT key, value::text FROM sync_outbox, jsonb_each({captured}::jsonb) WHERE op = '{op}'").fetchall()
        differing = set(got) ^ set(self.json(expected, row).items())
        assert not differing, [(*pair, kind_of(pair[0])) for pair in sorted(differing)]

    def clear(self):
        self.judge.execute("DELETE FROM sync_outbox")


@pytest.fixture
def wide(db):
    return Wide(db)


def test_awkward_values_of_every_type(wide):
    most = max(len(awkward) for _, awkward, _ in TYPES)
    styles = itertools.cycle(zip(*[itertools.islice(itertools.cycle(values), 60) for values in ODD_SETTINGS.values()]))
    for turn in range(most):
        wide.odd(dict(zip(ODD_SETTINGS, next(styles))))
        row = wide.insert({column: awkward[turn % len(awkward)] for column, (_, awkward, _) in zip(COLUMNS, TYPES)})
        wide.update(row, {column: awkward[(turn + 1) % len(awkward)] for column, (_, awkward, _) in zip(COLUMNS, TYPES)})
        wide.clear()


@PROPERTY
@given(st.data())
def test_any_value_under_any_settings(wide, data):
    wide.clear()
    wide.odd({name: data.draw(st.sampled_from(values), name) for name, values in ODD_SETTINGS.items()})
    # A few columns at a time: rows of eighty random values are slow to make and hard to shrink.
    some = data.draw(st.lists(st.integers(0, len(TYPES) - 1), min_size=1, max_size=8, unique=True))

    def draw():
        return {COLUMNS[n]: data.draw(TYPES[n][2] | st.sampled_from(TYPES[n][1]) | st.none(), TYPES[n][0]) for n in some}
    row = wide.insert(draw())
    wide.update(row, draw())


def test_all_null(wide):
    wide.insert({})


def test_capture_leaves_the_sessions_settings_alone(wide):
    chosen = {name: values[0] for name, values in ODD_SETTINGS.items()}
    wide.odd(chosen)
    wide.insert({COLUMNS[n]: awkward[0] for n, (_, awkward, _) in enumerate(TYPES)})

    assert {name: wide.writer.execute("SELECT current_setting(%s)", [name]).fetchone()[0] for name in chosen} == chosen


def test_settings_are_put_back_when_encoding_fails(db):
    """A cast that raises must not leave the session in UTC."""
    db.run("""CREATE TYPE grumpy AS ENUM ('no');
        CREATE FUNCTION refuse(grumpy) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
        CREATE CAST (grumpy AS json) WITH FUNCTION refuse(grumpy);
        CREATE TABLE t (id int PRIMARY KEY, g grumpy)""")
    db.attach("t")
    db.run("SET TimeZone = 'Asia/Kathmandu'; SET bytea_output = 'escape'")
    with pytest.raises(Exception, match="not today"):
        db.run("INSERT INTO t VALUES (1, 'no')")

    assert db.rows("SELECT current_setting('TimeZone') AS zone, current_setting('bytea_output') AS bytes") == [("Asia/Kathmandu", "escape")]
    assert db.rows("SELECT * FROM t") == []


def test_toasted_values_unchanged_by_an_update_are_not_captured(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, v int, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1, repeat('x', 100000)); UPDATE t SET v = 2; UPDATE t SET big = repeat('x', 100000)")

    assert db.changes()[1:] == [("UPDATE", {"id": 1}, {"v": 2})]


def test_a_number_written_with_another_scale_is_a_change(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, price numeric)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 1); UPDATE t SET price = 1.00")

    assert db.value("SELECT data::text FROM sync_outbox WHERE op = 'UPDATE'") == '{"price":1.00}'


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP"])
def test_a_database_in_another_encoding_sends_utf8(quiet_server, watched, receiver, encoding):
    db = watched(quiet_server).create_database(f"ENCODING '{encoding}' TEMPLATE template0")
    try:
        db.run("CREATE EXTENSION sync_outbox; CREATE TABLE t (id int PRIMARY KEY, v text)")
        db.aim(receiver)
        db.attach("t")
        word = {"LATIN1": "añejo ½", "EUC_JP": "日本"}[encoding]
        db.run("INSERT INTO t VALUES (1, %s)", [word])
        db.run("SET sync_outbox.reason = 'warum nicht'; INSERT INTO t VALUES (2, NULL)")

        assert db.flush() == '{"ok": true, "pending": 2, "sent": 2, "acked": 2}'
        assert receiver.changes[0]["data"]["v"] == word
    finally:
        db.close()
        quiet_server.drop_database(db.name)
