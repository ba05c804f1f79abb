"""The peer of the drain: what people write by hand.

A table with a status, and a loop that claims 50 rows with FOR UPDATE SKIP LOCKED, posts them over one kept connection,
and deletes those that were acknowledged in the same transaction."""

import http.client
import json

from psycopg.rows import dict_row

BATCH = 50

TABLE = """
    CREATE TABLE handmade (
        id bigserial PRIMARY KEY, dedup_key text NOT NULL UNIQUE, schema_name text NOT NULL, table_name text NOT NULL,
        op text NOT NULL, pk jsonb, data jsonb, status text NOT NULL DEFAULT 'PENDING', attempts int NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT now())"""

# The same rows as the extension captured.
COPY = """
    INSERT INTO handmade (dedup_key, schema_name, table_name, op, pk, data)
    SELECT dedup_key, schema_name, table_name, op, pk, data FROM sync_outbox ORDER BY id"""

CLAIM = """
    SELECT id, schema_name AS schema, table_name AS table, op, pk, data, dedup_key FROM handmade WHERE status = 'PENDING'
     ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"""


def fill(db):
    db.run("DROP TABLE IF EXISTS handmade")
    db.run(TABLE)
    db.run(COPY)
    db.run("CREATE INDEX ON handmade (status, id)")
    db.run("VACUUM ANALYZE handmade")
    db.run("CHECKPOINT")


def poll(session, receiver):
    """Until nothing is left. `session` is not in autocommit."""
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port)
    cursor = session.cursor(row_factory=dict_row)
    while rows := cursor.execute(CLAIM, [BATCH]).fetchall():
        ids = {row["dedup_key"]: row.pop("id") for row in rows}
        connection.request("POST", "/api/sync/upload_outbox", json.dumps({"changes": rows}),
                           {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        cursor.execute("DELETE FROM handmade WHERE id = ANY(%s)", [[ids[key] for key in answer["acked"]]])
        session.commit()
    session.rollback()
    connection.close()
