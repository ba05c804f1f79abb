"""Names of tables, types and functions that are values do not follow the writer's search_path."""

import json

import pytest


def test_what_is_captured_does_not_follow_search_path(db):
    db.run("CREATE TABLE t (id int PRIMARY KEY, r regclass)")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 't'); SET search_path = pg_catalog; INSERT INTO public.t VALUES (2, 'public.t');"
           " RESET search_path")
    assert len({data["r"] for _, _, data in db.changes()}) == 1


NAMED = {
    "regclass": ("regclass", "'public.t'"), "regtype": ("regtype", "'public.pair'"),
    "regproc": ("regproc", "'public.one'"),
    "regprocedure": ("regprocedure", "'public.one(public.pair)'"),
    "regclass[]": ("regclass[]", "ARRAY['public.t']::regclass[]"),
    "domain": ("public.named", "'public.t'"), "domain[]": ("public.named[]", "ARRAY['public.t']::public.named[]"),
    "composite": ("public.pair", "ROW(1, 'public.t')"),
    "composite[]": ("public.pair[]", "ARRAY[ROW(1, 'public.t')::public.pair]"),
    "range": ("public.classes", "'[public.t,public.t]'"), "multirange": ("public.classes_m", "'{[public.t,public.t]}'"),
    "added later": ("public.later", "ROW(1, 'public.t')"),
}


@pytest.mark.parametrize("what", NAMED)
def test_names_in_values_are_written_in_full(db, what):
    type, value = NAMED[what]
    db.run("""CREATE TABLE named_too (id int); CREATE TYPE pair AS (n int, r regclass); CREATE DOMAIN named AS regclass;
        CREATE TYPE later AS (n int); CREATE FUNCTION one(pair) RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE TYPE classes AS RANGE (subtype = regclass, subtype_opclass = oid_ops,
        multirange_type_name = classes_m)""")
    db.run(f"CREATE TABLE t (id int PRIMARY KEY, r {type}, b {type})")
    db.attach("t", branch_column="b")
    if what == "added later":
        db.run("INSERT INTO t VALUES (0, ROW(1), NULL); DELETE FROM sync_outbox;"
               " ALTER TYPE later ADD ATTRIBUTE r regclass")
    for n, path in enumerate(["public", "pg_catalog, public", "pg_catalog", "nowhere"]):
        db.run(f"SET search_path = {path}; INSERT INTO public.t VALUES ({n + 1}, {value}, {value})")
        assert db.value("SHOW search_path") == path
    db.run("RESET search_path")
    data = [(json.dumps(change.data["r"]), change.branch) for change in db.outbox()]
    assert len(data) == 4 and len(set(data)) == 1, data
    assert "public." in data[0][0], data


def test_a_cast_finds_what_it_names(db):
    """Beside a name in the same value: then that is written as the writer's path has it."""
    db.run("""CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE words (w text); INSERT INTO words VALUES ('fine');
        CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT to_json(w) FROM words);
        END $$;
        CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
        CREATE TYPE both_of AS (m mood, r regclass);
        CREATE TABLE t (id int PRIMARY KEY, r regclass, m mood, b both_of)""")
    db.attach("t")
    db.run("INSERT INTO t VALUES (1, 't', 'ok', ROW('ok', 't'))")
    assert [data for _, _, data in db.changes()] == [{"id": 1, "r": "public.t", "m": "fine",
                                                      "b": {"m": "fine", "r": "t"}}]


def test_a_composite_that_is_nested_again_and_again(db):
    """Each column is of the type before: what has been looked into is not looked into again."""
    db.run("CREATE TYPE c0 AS (a int, b int)")
    for n in range(1, 19):
        db.run(f"CREATE TYPE c{n} AS (a c{n - 1}, b c{n - 1})")
    db.run("CREATE TABLE t (id int PRIMARY KEY, v c18)")
    db.attach("t")
    db.run("SET statement_timeout = '1s'; INSERT INTO t VALUES (1, ROW(NULL, NULL)), (2, NULL)")
    assert len(db.changes()) == 2
