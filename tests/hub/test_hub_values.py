"""Values of every type arrive at the hub as they left, in every encoding."""

import json

from support.hub_database import Hub, change, insert, keys
from support.values import EXTENSIONS, PREPARE, TYPES

# JSON has no place for these: array bounds, a null inside json, how a string in json is escaped, and types with a cast to json that nothing reads back.
LOSSY = {("integer[]", "[0:1]={5,6}"), ("json", "null"), ("jsonb", "null"), ("json", '"\\u00e9"')}
ONE_WAY = {"hstore", "hstore[]", "mood", "mood[]"}


def whole_row(op, row, data):
    """A change of table `t` as text, with the data as PostgreSQL wrote it."""
    return json.dumps(change(op, {"id": row}, "DATA", "t")).replace('"DATA"', data)


def test_values_of_every_type_arrive_as_they_left(hub):
    for setting in ["TimeZone = 'UTC'", "DateStyle = 'ISO'", "IntervalStyle = 'postgres'", "bytea_output = 'hex'"]:
        hub.run(f"SET {setting}")
    hub.create_extension(*EXTENSIONS)
    hub.run(PREPARE)
    columns = ", ".join(f"c{number} {kind}" for number, (kind, _, _) in enumerate(TYPES))
    hub.run(f"CREATE TABLE source (id int PRIMARY KEY, {columns})")
    hub.table(f"id int PRIMARY KEY, {columns}")
    sent = []
    for number, (kind, values, _) in enumerate(TYPES):
        for value in values:
            if kind not in ONE_WAY and (kind, value) not in LOSSY:
                sent.append((number, kind, value))
                hub.run(f"INSERT INTO source (id, c{number}) VALUES (%s, %s::{kind})", [len(sent), value])
    changes = []
    for row, data in hub.rows("SELECT id, to_json(source)::text FROM source"):
        if row % 2:  # by INSERT, or by UPDATE
            changes += [whole_row("INSERT", row, data)]
        else:
            changes += [json.dumps(insert("t", id=row)), whole_row("UPDATE", row, data)]
    answer = hub.value("SELECT sync_outbox_apply(%s::json)", ['{"changes": [' + ", ".join(changes) + "]}"])
    assert answer["errors"] == [] and len(answer["acked"]) == len(changes)
    differing = []
    for row, (number, kind, value) in enumerate(sent, 1):
        same = hub.value(f"SELECT a.c{number}::text IS NOT DISTINCT FROM b.c{number}::text FROM source a JOIN t b USING (id) WHERE id = %s", [row])
        if not same:
            differing.append((kind, value))
    assert differing == []


def test_a_hub_in_latin1(quiet_server, watched):
    watched(quiet_server)
    db = quiet_server.create_database("TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        db.run("SET client_min_messages = warning; CREATE EXTENSION sync_outbox")
        hub = Hub(db)
        hub.table('id int PRIMARY KEY, "größe" text', name='"té"')
        hub.acks(change("INSERT", {"id": 1}, {"id": 1, "größe": "naïve"}, "té"), change("UPDATE", {"id": 1}, {"größe": "süß"}, "té"))
        assert hub.content('"té"') == [(1, "süß")]
        body = json.dumps({"changes": [insert(id=2, note="€")]})  # as \u20ac, which latin1 does not have
        answer = hub.value("SELECT sync_outbox_apply(%s::json)", [body])
        assert answer["acked"] == [] and len(answer["errors"]) == 1
    finally:
        db.close()
        quiet_server.drop_database(db.name)


def test_hostile_values_stay_values(hub):
    awkward = ["'; DROP TABLE sales; --", "\\'", "$1", "$$", "\u2028", "x" * 10_000, "{}", "null"]
    hub.acks(*[insert(id=n, note=note) for n, note in enumerate(awkward)])
    assert [row[2] for row in hub.content()] == awkward
    answer = hub.apply(insert(id=100, note="a\x00b"), deep := insert(id=101, note="ok"))
    assert answer["acked"] == keys(deep) and len(answer["errors"]) == 1
