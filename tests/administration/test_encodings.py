"""Databases whose encoding is not UTF-8: names, keys, data and arguments that are not ASCII arrive as what they are."""

import json

import pytest
from psycopg import errors

from support.replay import replay, rows

LATIN1 = "TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'"

# In an error a character that is not ASCII is written as SQL escapes it.
NO_SUCH_TARGET = r'target "se\\00F1al" does not exist'


@pytest.fixture
def latin1(quiet_server, watched):
    """A database in LATIN1 with the extension in it; the client speaks UTF-8."""
    db = watched(quiet_server).create_database(LATIN1)
    db.run("SET client_encoding = 'UTF8'; SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
    yield db
    db.close()
    quiet_server.drop_database(db.name)


@pytest.fixture
def years(latin1, receiver):
    """An attached table with names that are not ASCII."""
    latin1.aim(receiver)
    latin1.run("""CREATE TABLE "año" ("clé" text PRIMARY KEY, "größe" text)""")
    latin1.attach('"año"', branch_column="größe")
    return latin1


# Capture


@pytest.mark.parametrize("altered", [False, True], ids=["direct", "altered"])
def test_the_second_change_of_a_key_by_a_nested_trigger(years, receiver, altered):
    if altered:
        years.alter_outbox()
    years.run("""CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE "año" SET "größe" = NEW."größe" || 'é' WHERE "clé" = NEW."clé" AND length("größe") < 3;
            RETURN NULL;
        END $$;
        CREATE TRIGGER "!again" AFTER INSERT OR UPDATE ON "año" FOR EACH ROW EXECUTE FUNCTION again()""")
    years.run("""INSERT INTO "año" VALUES ('ñandú', 'ß'), ('ÿ', '')""")
    years.run("""UPDATE "año" SET "clé" = 'ö' || "clé", "größe" = '' """)

    now = rows(years, '"año"', ("clé",))
    assert replay(years.outbox()) == now and len(now) == 2
    assert years.flushed()["ok"]
    sent = [(change["table"], change["op"], change["pk"]["clé"]) for change in receiver.changes]
    assert {table for table, _, _ in sent} == {"año"}
    assert {key for _, _, key in sent} == {"ñandú", "ÿ", "öñandú", "öÿ"}


def test_every_operation_sends_what_is_stored(years, receiver):
    years.attach('"año"', include_old=True, operations=["INSERT", "UPDATE", "DELETE", "TRUNCATE"])
    years.run("SET sync_outbox.reason = 'corrección'")
    years.run("""INSERT INTO "año" VALUES ('clé', 'süß'); UPDATE "año" SET "größe" = '½';
                 DELETE FROM "año"; TRUNCATE "año" """)
    assert years.flushed()["acked"] == 4
    inserted, updated, deleted, truncated = receiver.changes
    assert inserted["data"] == {"clé": "clé", "größe": "süß"}
    assert (updated["data"], updated["old"]) == ({"größe": "½"}, {"größe": "süß"})
    assert (deleted["pk"], truncated["table"]) == ({"clé": "clé"}, "año")
    assert {change["reason"] for change in receiver.changes} == {"corrección"}


# Arguments


def test_attach_and_detach(years):
    years.attach('"año"', columns=["größe"], key_columns=["clé"], branch_column="größe")
    years.attach('"año"', exclude=["größe"])
    assert years.value("SELECT exclude FROM sync_outbox_attached") == ["größe"]
    for arguments, argument in [({"columns": ["señal"]}, "columns"), ({"exclude": ["señal"]}, "exclude"),
                                ({"branch_column": "señal"}, "branch_column"),
                                ({"key_columns": ["señal"]}, "key_columns")]:
        with pytest.raises(errors.UndefinedColumn) as refused:
            years.attach('"año"', **arguments)
        assert argument in str(refused.value)
    for name in ("priority", "target"):
        with pytest.raises(errors.Error):
            years.attach('"año"', **{name: "señal"})
    with pytest.raises(errors.InvalidParameterValue):
        years.attach('"año"', operations=["señal"])
    years.run("""SELECT sync_outbox_detach('"año"')""")
    assert years.rows("SELECT FROM sync_outbox_attached") == []


def test_flush_and_drain_of_a_branch(years, receiver):
    years.run("""INSERT INTO "año" VALUES ('a', 'Málaga'), ('b', 'Cádiz'), ('c', 'Málaga')""")
    assert years.flushed(branch="Málaga")["acked"] == 2
    assert [change["branch"] for change in receiver.changes] == ["Málaga"] * 2
    years.run("CALL sync_outbox_drain('Cádiz')")
    assert [change["branch"] for change in receiver.changes] == ["Málaga", "Málaga", "Cádiz"]
    for call in ("SELECT sync_outbox_flush(target => 'señal')", "CALL sync_outbox_drain(target => 'señal')"):
        with pytest.raises(errors.InvalidParameterValue, match=NO_SUCH_TARGET):
            years.run(call)


def test_targets(years, receiver, new_receiver):
    other = new_receiver()
    config = json.dumps({"base_url": other.url, "upload_path": "/añadir"})
    years.run("SELECT sync_outbox_target_set('sucursal', %s)", [config])
    with pytest.raises(errors.InvalidParameterValue, match=NO_SUCH_TARGET):
        years.run("SELECT sync_outbox_target_drop('señal')")
    years.run("SELECT sync_outbox_target_set('señal', '{}'); SELECT sync_outbox_target_drop('señal')")
    years.run("SELECT sync_outbox_set_token('t', 'sucursal')")
    with pytest.raises(errors.InvalidParameterValue, match=NO_SUCH_TARGET):
        years.run("SELECT sync_outbox_set_token('t', 'señal')")
    with pytest.raises(errors.InvalidParameterValue):
        years.run("SELECT sync_outbox_set_token('señal')")
    years.attach('"año"', target="sucursal")
    years.run("""INSERT INTO "año" VALUES ('é', 'ü')""")
    assert years.flushed(target="sucursal")["acked"] == 1
    assert other.changes[0]["data"] == {"clé": "é", "größe": "ü"}


def test_pause_and_resume(years):
    years.run("SELECT sync_outbox_pause(reason => 'migración de año')")
    (target,) = [row for row in years.rows("SELECT * FROM sync_outbox_overview()") if row.target == "default"]
    assert (target.paused, target.paused_reason) == (True, "migración de año")
    for call in ("pause", "resume"):
        with pytest.raises(errors.InvalidParameterValue, match=NO_SUCH_TARGET):
            years.run(f"SELECT sync_outbox_{call}('señal')")
    years.run("SELECT sync_outbox_resume()")


def test_adopt(years):
    with pytest.raises(errors.InvalidParameterValue):
        years.run("SELECT sync_outbox_adopt('señal')")


def test_configure(years, receiver):
    years.run("""SELECT sync_outbox_detach('"año"')""")
    answer = years.configure(webapp_base_url=receiver.url, sync_upload_token="t", uploads_local_to_remote=["año"])
    assert answer["attached"] == ['public."año"']
    with pytest.raises(errors.UndefinedTable):
        years.configure(uploads_local_to_remote=["señal"])
    with pytest.raises(errors.InvalidParameterValue):
        years.run("""SELECT sync_outbox_configure('{"webapp_base_url": "señal"}')""")


def test_backfill(years):
    years.run("""SELECT sync_outbox_detach('"año"'); INSERT INTO "año" VALUES ('ñandú', 'ß'), ('x', 'ß')""")
    years.attach('"año"')
    assert years.value("""SELECT sync_outbox_backfill('"año"', '"clé" = ''ñandú''')""") == 1
    assert years.changes() == [("INSERT", {"clé": "ñandú"}, {"clé": "ñandú", "größe": "ß"})]
    with pytest.raises(errors.InvalidParameterValue):
        years.run("""SELECT sync_outbox_backfill('"año"', NULL, 'señal')""")


def test_stats_and_overview(years):
    years.run("""INSERT INTO "año" VALUES ('a', 'Málaga'), ('b', 'Cádiz')""")
    (row,) = years.rows("SELECT * FROM sync_outbox_stats('Málaga')")
    assert (row.table_name, row.total) == ("año", 1)
    assert years.value("SELECT total FROM sync_outbox_overview() WHERE target = 'default'") == 2


def test_requeue_and_discard(years):
    years.run("""INSERT INTO "año" VALUES ('a', 'x'), ('b', 'y'); UPDATE sync_outbox SET status = 'DEAD'""")
    first, second = [change.id for change in years.outbox()]
    assert years.value("SELECT sync_outbox_requeue(%s, 'corrección hecha')", [[first]]) == 1
    assert years.value("""SELECT sync_outbox_requeue(relation => '"año"', reason => 'años después')""") == 1
    assert years.value("SELECT sync_outbox_discard(%s, 'inútil, según Núñez')", [[second]]) == 1
    with pytest.raises(errors.InvalidParameterValue, match=NO_SUCH_TARGET):
        years.run("SELECT sync_outbox_requeue(target => 'señal')")


def test_import(years):
    years.run("""CREATE TABLE antes (id bigint PRIMARY KEY, schema_name text, table_name text, op text, pk jsonb,
            data jsonb, dedup_key text, created_at timestamptz DEFAULT now());
        INSERT INTO antes VALUES (1, 'public', 'año', 'INSERT', '{"clé": "ñ"}',
            '{"clé": "ñ", "größe": "ß"}', 'clé única')""")
    assert years.value("SELECT sync_outbox_import('antes')") == 1
    assert years.changes() == [("INSERT", {"clé": "ñ"}, {"clé": "ñ", "größe": "ß"})]
    assert years.outbox()[0].branch == "ß"


@pytest.mark.parametrize("function", ["sync_outbox_apply", "sync_outbox_apply_text"])
def test_accept_and_apply(years, function):
    years.run("""SELECT sync_outbox_accept('"año"', ignore_unknown_columns => true)""")
    insert = {"id": 1, "dedup_key": "00000000-0000-4000-8000-000000000001", "txid": 1, "schema": "public",
              "table": "año", "op": "INSERT", "pk": {"clé": "ñ"}, "data": {"clé": "ñ", "größe": "ß"}}
    unknown = {**insert, "id": 2, "dedup_key": "00000000-0000-4000-8000-000000000002", "table": "señal"}
    answer = years.value(f"SELECT {function}(%s)", [json.dumps({"changes": [insert, unknown]}, ensure_ascii=False)])
    assert answer["acked"] == [insert["dedup_key"]]
    assert "señal" in answer["errors"][0]["error"]
    assert rows(years, '"año"', ("clé",)) != {}


def test_the_extension_in_a_schema_whose_name_is_not_ascii(quiet_server, watched, receiver):
    db = watched(quiet_server).create_database(LATIN1)
    try:
        db.run("""SET client_encoding = 'UTF8'; SET client_min_messages = warning; CREATE SCHEMA "réplica";
            CREATE EXTENSION sync_outbox SCHEMA "réplica"; SET search_path = "réplica", public""")
        db.aim(receiver)
        db.run("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
        db.attach("t")
        db.run("INSERT INTO t VALUES (1, 'ß')")
        assert db.flushed()["acked"] == 1 and receiver.changes[0]["data"] == {"id": 1, "v": "ß"}
    finally:
        db.close()
        quiet_server.drop_database(db.name)
